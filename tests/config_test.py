"""Config files, completion from builders, overrides, and what is said when they are wrong."""

import re

import pytest

from deit_jax import config as config_lib
from deit_jax.errors import ConfigError
from deit_jax.train.schema import from_signature

FILE = """
from ml_collections import ConfigDict
VARIANTS = ("small", "large")
def get_config(variant):
    return ConfigDict({"model": {"width": {"small": 8, "large": 16}[variant]}, "optim": {}})
"""


def make_model(
    *,
    classes,
    width=4,
    rate=0.5,
    name="net",
    sizes=(1.0, 2.0),
    wide=False,
    limit: int | None = None,
):
    """A builder; `classes` is supplied by the loop."""


def make_optim(*, params, lr=0.1, momentum: float | None = None, clip: float | None = 1.0):
    """Another."""


SECTIONS = {
    "model": from_signature(make_model, supplied=("classes",)),
    "optim": from_signature(make_optim, supplied=("params",)),
}
TOP = {"seed": config_lib.Option(0, int)}


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(FILE)

    def load(variant=":small", *overrides):
        return config_lib.load_config(f"{file}{variant}", overrides, sections=SECTIONS, top=TOP)

    return load


def test_defaults_come_from_the_builders(load):
    config = load()
    assert config.to_dict() == {
        "seed": 0,
        "model": {
            "width": 8,
            "rate": 0.5,
            "name": "net",
            "sizes": (1.0, 2.0),
            "wide": False,
            "limit": None,
        },
        "optim": {"lr": 0.1, "momentum": None, "clip": 1.0},
    }
    assert load(":large").model.width == 16
    assert load("").model.width == 8, "the first variant is the default"


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("seed=7", "seed", 7),
        ("model.width=32", "width", 32),
        ("model.rate=1", "rate", 1.0),
        ("model.rate=3e-4", "rate", 3e-4),
        ("model.name=other=net", "name", "other=net"),
        ("model.name=", "name", ""),
        ("model.wide=true", "wide", True),
        ("model.wide=False", "wide", False),
        ("model.sizes=(3,4.5)", "sizes", (3.0, 4.5)),
        ("model.sizes=3,4", "sizes", (3.0, 4.0)),
        ("model.limit=5", "limit", 5),
        ("model.limit=none", "limit", None),
        ("optim.momentum=0.9", "momentum", 0.9),
        ("optim.clip=none", "clip", None),
    ],
)
def test_overrides_take_the_type_of_the_default(load, override, key, value):
    flat = config_lib.flatten(load(":small", override))
    assert flat[override.partition("=")[0]] == value
    assert type(flat[override.partition("=")[0]]) is type(value)


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.widht=3", "unknown key config.model.widht; near ones: model.width"),
        ("modle.width=3", "unknown key config.modle; near ones: model.width"),
        ("width=3", "unknown key config.width; near ones: model.width"),
        ("model=3", "config.model is a section; set one of its keys: model.limit, model.name"),
        ("model.width=abc", "config.model.width takes int (now 8), not 'abc'"),
        ("model.width=1.5", "config.model.width takes int (now 8), not '1.5'"),
        ("model.width=none", "config.model.width takes int (now 8), not 'none'"),
        ("model.width=True", "config.model.width takes int (now 8), not 'True'"),
        ("model.rate=fast", "config.model.rate takes float (now 0.5), not 'fast'"),
        ("model.wide=yes", "config.model.wide takes bool (now False), not 'yes'"),
        ("model.sizes=('a',)", "config.model.sizes takes tuple"),
        ("model.limit=1.5", "config.model.limit takes int (now None), not '1.5'"),
        ("model.classes=3", "unknown key config.model.classes"),
        ("model.width", "config.model.width has no value"),
    ],
)
def test_wrong_overrides_are_refused_with_the_cure(load, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(":small", override)


def test_several_mistakes_are_reported_together(load):
    with pytest.raises(ConfigError) as caught:
        load(":small", "model.widht=3", "optim.lr=x", "sede=1")
    assert len(str(caught.value).splitlines()) == 3


def test_unknown_variant_and_file_name_what_exists(load, tmp_path):
    with pytest.raises(ConfigError, match="unknown variant 'tiny' of .*known: small, large"):
        load(":tiny")
    with pytest.raises(ConfigError, match="no config file .*holds: .*recipe.py"):
        config_lib.load_config(str(tmp_path / "recipes.py"), sections=SECTIONS, top=TOP)


def test_unknown_keys_of_the_file_itself_are_reported(tmp_path):
    file = tmp_path / "old.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'model': {'widht': 3}, 'optimizer': {}})\n"
    )
    with pytest.raises(ConfigError) as caught:
        config_lib.load_config(str(file), sections=SECTIONS, top=TOP)
    assert "unknown key config.optimizer; known: optim" in str(caught.value)
    assert "unknown key config.model.widht; known: width" in str(caught.value)


def test_config_is_locked(load):
    with pytest.raises(AttributeError, match="locked"):
        load().model.depth = 3


def test_arguments_become_overrides():
    arguments = ["--config.a.b=1", "--config.c", "2", "--config.d=e=f"]
    assert config_lib.split_overrides(arguments) == ["a.b=1", "c=2", "d=e=f"]
    with pytest.raises(ConfigError, match="unknown argument '--confg.a=1', 'stray'"):
        config_lib.split_overrides(["--confg.a=1", "stray"])


def test_differences_name_both_values():
    old = {"a": {"b": 1, "gone": 2}, "c": [1, 2]}
    new = {"a": {"b": 3}, "c": (1, 2)}
    assert config_lib.differences(old, new) == {
        "a.b": (1, 3),
        "a.gone": (2, "(absent)"),
    }
