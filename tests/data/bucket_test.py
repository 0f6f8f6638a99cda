"""Data in a bucket has the records of the same files on this machine."""

import io
import zipfile

import numpy as np
import PIL.Image
import pytest
from data.formats_test import FORMATS, small_photos

from deit_jax import data, storage
from deit_jax.data import shards
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


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record", "tar", "parquet"])
def test_shards_of_every_format(gcs, bucket, tmp_path, monkeypatch, file_format):
    """By whole files, by requests of one photo, or by row groups, as the format has them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = FORMATS[file_format](small_photos(), tmp_path / "set")
    if file_format != "tar":
        options["window_shards"] = 2
    (where,) = options.keys() & {"path", "data_dir"}
    local = data.open_data(**options)
    there = data.open_data(**options | {where: copy(gcs, bucket, tmp_path / "set")})
    refused = gcs.refused
    with gcs.outage(1):
        assert_same_records(there, local)
    assert gcs.refused > refused


@pytest.mark.parametrize("file_format", ["tar", "parquet"])
def test_patterns_of_shards(gcs, bucket, tmp_path, monkeypatch, file_format):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    FORMATS[file_format](small_photos(), tmp_path / "set")
    url, suffix = copy(gcs, bucket, tmp_path / "set"), f".{file_format}"
    inside = "" if file_format == "tar" else "data/"
    files = [file for file in gcs.names(bucket) if "train" in file and file.endswith(suffix)]
    numbers = {"tar": "set-train-{0000..0002}", "parquet": "train-{00000..00002}-of-00003-1a2b3c"}
    for pattern in (f"{inside}*train*{suffix}", f"{inside}{numbers[file_format]}{suffix}"):
        for options in ((url, pattern), (None, f"{url}/{pattern}")):
            found, _ = shards.find_splits(options[0], options[1], f"{url}/{inside}*val*", suffix)
            assert found == [f"gs://{bucket}/{file}" for file in files]
    del gcs.buckets[bucket][files[1]]
    with pytest.raises(ConfigError, match=f"1 of the 3 files of .* are missing.*{suffix}"):
        shards.find_splits(url, f"{inside}{numbers[file_format]}{suffix}", None, suffix)


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
