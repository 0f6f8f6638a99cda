"""Data in a bucket has the records of the same files on this machine."""

import io
import zipfile

import numpy as np
import PIL.Image
import pytest

from deit_jax import data, storage
from deit_jax.errors import ConfigError


def copy(gcs, bucket, folder):
    """Puts the files of `folder` into the bucket; returns its URL."""
    for name in storage.names_under(folder):
        gcs.put(bucket, f"{folder.name}/{name}", (folder / name).read_bytes())
    return f"gs://{bucket}/{folder.name}"


def assert_same_records(ours, theirs, count=None):
    for a, b in ((ours.train, theirs.train), (ours.eval, theirs.eval)):
        assert len(a) == len(b)
        some = np.arange(len(a))[:count]
        (images, labels), (same, as_labeled) = a.get(some), b.get(some)
        assert all(np.array_equal(x, y) for x, y in zip(images, same, strict=True))
        np.testing.assert_array_equal(labels, as_labeled)
    assert ours.class_names == theirs.class_names


@pytest.fixture
def photos(tmp_path):
    """Two classes with nested and hidden files, in two splits."""
    dice = np.random.default_rng(0)
    root = tmp_path / "photos"
    names = ["b/1.png", "b/deep/0.png", "b/2.png", "a/z.png", "a/.hidden.png", "a/note.txt"]
    for split in ("train", "val"):
        for name in names:
            file = root / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = dice.integers(0, 256, (9, 7, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(file, "PNG") if ".png" in name else file.touch()
    return root


def test_a_folder_and_an_archive_of_photos(gcs, bucket, photos):
    local = data.open_data(source="folder", path=str(photos))
    url = copy(gcs, bucket, photos)
    there = data.open_data(source="folder", path=url)
    assert_same_records(there, local)
    assert [there.train.record_name(i).removeprefix(url) for i in range(4)] == [
        local.train.record_name(i).removeprefix(str(photos)) for i in range(4)
    ]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in storage.names_under(photos):
            archive.write(photos / name, name)
    gcs.put(bucket, "photos.zip", content.getvalue())
    assert_same_records(data.open_data(source="folder", path=f"{url}.zip"), local)


def test_a_photo_that_is_gone_is_a_bad_sample(gcs, bucket, photos):
    there = data.open_data(source="folder", path=copy(gcs, bucket, photos))
    del gcs.buckets[bucket]["photos/train/a/z.png"]
    records, _ = there.train.get(np.arange(4))
    assert isinstance(records[0], data.CorruptImage) and isinstance(records[1], bytes)
    with pytest.raises(ConfigError, match=f"no folder or .zip gs://{bucket}/none"):
        data.open_data(source="folder", path=f"gs://{bucket}/none")


def test_arrays(gcs, bucket, tmp_path):
    images, labels = np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 2])
    arrays = {"train_images": images, "train_labels": labels}
    arrays |= {"test_images": images + 1, "test_labels": labels}
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "few.npz", **arrays)
    url = copy(gcs, bucket, tmp_path / "set")
    local = data.open_data(source="arrays", path=str(tmp_path / "set" / "few.npz"))
    assert_same_records(data.open_data(source="arrays", path=f"{url}/few.npz"), local)


def test_a_prepared_set_is_read_by_whole_files(gcs, bucket, tfds_dir):
    copy(gcs, bucket, tfds_dir / "imagenet2012")
    options = {"source": "tfds", "name": "imagenet2012", "window_shards": 1}
    local = data.open_data(**options, data_dir=str(tfds_dir))
    there = data.open_data(**options, data_dir=f"gs://{bucket}")
    assert_same_records(there, local, 5)
    with pytest.raises(ConfigError, match="set window_shards"):
        data.open_data(**options | {"window_shards": None}, data_dir=f"gs://{bucket}")
    with pytest.raises(
        ConfigError, match=f"no prepared data set 'cifar10' in data_dir gs://{bucket}"
    ):
        data.open_data(source="tfds", name="cifar10", data_dir=f"gs://{bucket}")
