"""The readable names of ImageNet's classes, which a wheel must contain."""

import configparser
import pathlib
import re

from deit_jax.data import imagenet_classes


def test_names_are_complete_distinct_and_in_label_order():
    names = imagenet_classes.class_names()
    assert len(names) == len(set(names)) == 1000 and all(names)
    lines = pathlib.Path(imagenet_classes.__file__).with_suffix(".txt").read_text().splitlines()
    assert lines == sorted(lines)
    assert all(re.fullmatch(r"n\d{8} \S.*\S", line) for line in lines)
    assert [imagenet_classes.class_name(line[:9]) for line in lines] == list(names)


def test_the_names_are_package_data():
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(imagenet_classes.__file__).parents[2] / "setup.cfg")
    assert setup["options.package_data"]["deit_jax.data"] == "*.txt"
