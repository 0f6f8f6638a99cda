"""A user's data format: a class, a function and one line in the table of sources."""

import sys
import textwrap

import numpy as np
import pytest
import tiny_runs

from deit_jax import builders, data
from deit_jax.errors import ConfigError

FORMAT = '''
import numpy as np
from deit_jax import data


class Stripes(data.Source):
    def __init__(self, count, side):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def get(self, indices):
        images = []
        for index in indices:
            image = np.zeros((self.side, self.side, 3), np.uint8)
            image[index % 2 :: 2] = 200
            images.append(image)
        return images, np.asarray(indices) % 2

    def record_name(self, index):
        return f"stripes {index}"


def open_stripes(*, count: int = 40, side: int = 12) -> data.Data:
    """Images of stripes."""
    return data.Data(
        train=Stripes(count, side),
        eval=Stripes(count // 4, side),
        num_classes=2,
        class_names=("even", "odd"),
        description=f"{count} images of stripes",
    )
'''


@pytest.fixture
def stripes(tmp_path, monkeypatch):
    """The format's module, imported from a new file and entered in the table."""
    (tmp_path / "stripes.py").write_text(textwrap.dedent(FORMAT))
    monkeypatch.syspath_prepend(tmp_path)
    import stripes as module

    monkeypatch.setitem(data.SOURCES, "stripes", module.open_stripes)
    yield module
    del sys.modules["stripes"]


def test_its_options_are_those_of_the_data_section(stripes):
    config = tiny_runs.load("deit.py:ti", "data.source=stripes", "data.side=10")
    assert config.data.to_dict() == {"source": "stripes", "count": 40, "side": 10}
    for wrong in ("data.path=x", "data.window_shards=2", "data.name=imagenet2012"):
        key = wrong.partition("=")[0]
        with pytest.raises(ConfigError, match=f"unknown key config.{key}"):
            tiny_runs.load("deit.py:ti", "data.source=stripes", wrong)
    with pytest.raises(ConfigError, match=r"unknown key config.data.side"):
        tiny_runs.load("deit.py:ti", "data.source=digits", "data.side=10")
    with pytest.raises(ConfigError, match=r"data.side takes int.* not 'wide'"):
        tiny_runs.load("deit.py:ti", "data.source=stripes", "data.side=wide")


def test_it_makes_batches(stripes):
    opened = data.open_data(source="stripes", side=10)
    with data.train_batches(opened.train, 20, canvas=16, repeats=2, mix_group=5) as batches:
        batch = next(batches)
    rows = batch["index"] >= 0
    np.testing.assert_array_equal(batch["label"][rows], batch["index"][rows] % 2)
    assert (batch["canvas"][rows][batch["label"][rows] == 1][:, 1:10:2, :10] == 200).all()
    evaluation = list(data.eval_batches(opened.eval, 4, 16, image_size=8, crop_ratio=1.0))
    assert sum(batch["mask"].sum() for batch in evaluation) == 10


def test_every_source_is_described_by_its_docstring():
    for name, opener in data.SOURCES.items():
        assert builders.headline(opener), name


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ("digits", set()),
        ("arrays", {"path"}),
        (
            "tar",
            {"path", "train_split", "eval_split", "num_classes", "classes", "exif_orientation"},
        ),
        (
            "parquet",
            {
                "path",
                "train_split",
                "eval_split",
                "image_key",
                "label_key",
                "num_classes",
                "window_shards",
                "exif_orientation",
            },
        ),
        (
            "folder",
            {"path", "train_split", "eval_split", "val_share", "split_seed", "exif_orientation"},
        ),
        (
            "tfds",
            {
                "name",
                "data_dir",
                "train_split",
                "eval_split",
                "image_key",
                "label_key",
                "window_shards",
                "exif_orientation",
            },
        ),
    ],
)
def test_options_of_the_sources(source, options):
    known = builders.options(data.open_data, {"source": source})
    assert set(known) - {"source"} == options
