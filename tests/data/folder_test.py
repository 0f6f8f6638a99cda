"""Image folders: classes, mistakes, photos that cannot be opened."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from deit_jax import data
from deit_jax.errors import ConfigError


def jpeg(value):
    with io.BytesIO() as file:
        Image.new("RGB", (12, 9), (value, 0, 255 - value)).save(file, "JPEG")
        return file.getvalue()


def fill(root, **splits):
    """Image folders: split -> {class: number of images}."""
    for split, classes in splits.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.jpg").write_bytes(jpeg(10 * i))
    return str(root)


def test_folder(tmp_path):
    path = fill(tmp_path, train={"dog": 3, "cat": 2}, val={"cat": 1, "dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "train" / "dog" / "more").mkdir()
    (tmp_path / "train" / "dog" / "more" / "4.JPEG").write_bytes(jpeg(200))
    opened = data.open_data(source="folder", path=path)
    assert opened.class_names == ("cat", "dog") and opened.num_classes == 2
    images, labels = opened.train.get(np.arange(len(opened.train)))
    assert labels.tolist() == [0, 0, 1, 1, 1, 1] and images[-1] == jpeg(200)
    assert opened.train.record_name(5) == str(tmp_path / "train/dog/more/4.JPEG")
    assert len(opened.eval) == 2


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "is empty"),
        ({"train": {"a": 1}}, "'val'; known: train"),
        ({"train": {"a": 1}, "val": {"a": 1, "b": 1}}, "lacks: b"),
        ({"train": {"a": 1, "b": 0}, "val": {"a": 1}}, "have no images: b"),
        ({"train": {"a": 1}, "val": {"a": 0}}, "have no images: a"),
    ],
)
def test_folder_mistakes(tmp_path, splits, message):
    with pytest.raises(ConfigError, match=message):
        data.open_data(source="folder", path=fill(tmp_path, **splits))


def test_photos_that_cannot_be_opened_are_bad_samples(tmp_path):
    """By name, at once (a pipe would wait for ever), and the same after a restart."""
    path = fill(tmp_path, train={"a": 8}, val={"a": 1})
    folder = tmp_path / "train" / "a"
    (folder / "dangling.jpg").symlink_to("/nowhere/x")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    train = data.open_data(source="folder", path=path).train
    (folder / "3.jpg").unlink()
    expected = {"dangling.jpg", "loop.jpg", "pipe.jpg", "3.jpg"}
    seen = []
    for start in (0, 0, 1):
        options = {"canvas": 16, "start_step": start, "max_corrupt_share": 0.5}
        with data.train_batches(train, 11, **options) as batches:
            seen += [next(batches)["index"].tolist() for _ in range(2 - start)]
            names = {os.path.basename(name) for name in batches.health.corrupt_names.values()}
        assert names == expected
    assert seen[0:2] == seen[2:4] and seen[4] == seen[1]
    with (
        pytest.raises(data.CorruptShareExceeded, match=r"a/\w+.jpg"),
        data.train_batches(train, 11, canvas=16) as batches,
    ):
        next(batches)


def test_a_class_folder_that_cannot_be_read_is_named(tmp_path):
    path = fill(tmp_path, train={"a": 1}, val={"a": 1})
    (tmp_path / "train" / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match="train/loop cannot be read: Too many levels"):
        data.open_data(source="folder", path=path)


def test_folder_without_class_folders(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ConfigError, match="no class folders"):
        data.open_data(source="folder", path=str(tmp_path))
    with pytest.raises(ConfigError, match="no folder"):
        data.open_data(source="folder", path=str(tmp_path / "absent"))
