"""TFRecord and ArrayRecord files: the index, positional reads, and damage told by checksums."""

import os
import pathlib

import numpy as np
import pytest
from data.decode_test import RGB, encode
from data.example_test import serialize
from data.pipeline_test import first_batches

from deit_jax import data
from deit_jax.data import local_files, tfds_sets, tfrecord
from deit_jax.data.array_record import ArrayRecordFiles
from deit_jax.errors import ConfigError

COUNT, CLASSES = 30, 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def payloads(count=COUNT):
    """Serialized photos that all differ, with their labels."""
    rng = np.random.default_rng(0)
    angles = rng.integers(360, size=count).tolist()
    images = [encode(RGB.rotate(angle).resize((24, 16)), "JPEG") for angle in angles]
    return [serialize(image=image, label=[i % CLASSES]) for i, image in enumerate(images)]


def write(path, records, file_format="tfrecord"):
    """By the formats' own writers."""
    if file_format == "tfrecord":
        import tensorflow as tf

        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
    else:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in records:
            writer.write(record)
        writer.close()
    return pathlib.Path(path)


def source(path, file_format="tfrecord", window_shards=None, count=COUNT):
    from tensorflow_datasets.core import utils

    shard = utils.shard_utils.FileInstruction(
        filename=str(path), skip=0, take=count, examples_in_shard=count
    )
    keys = ("image", "label")
    return tfds_sets.TfdsSource([shard], file_format, CLASSES, keys, window_shards)


def outcome(opened):
    """Every record: (image, label), or None where it is corrupt."""
    records, labels = opened.get(np.arange(len(opened)))
    pairs = zip(records, labels.tolist(), strict=True)
    return [None if isinstance(r, data.CorruptImage) else (r, label) for r, label in pairs]


@pytest.mark.parametrize("window_shards", [None, 1])
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_no_flipped_bit_trains_silently(tmp_path, file_format, window_shards):
    """300 bits anywhere in a file: sound values, a corrupt record, or a refusal by name."""
    path = write(tmp_path / "sound", payloads(), file_format)
    expected = outcome(source(path, file_format))
    content = np.fromfile(path, np.uint8)
    rng = np.random.default_rng(1)
    lost = []
    # Not the zeros to which an ArrayRecord file is filled up.
    for number, place in enumerate(rng.choice(np.flatnonzero(content), 300)):
        damaged = content.copy()
        damaged[place] ^= 1 << rng.integers(8)
        flipped = tmp_path / f"flipped-{number}"
        damaged.tofile(flipped)
        try:
            found = outcome(source(flipped, file_format, window_shards))
        except ConfigError as error:
            assert flipped.name in str(error)
            continue
        finally:
            flipped.unlink()
        bad = [record is None for record in found]
        lost.append(sum(bad))
        sound = [f == e for f, e in zip(found, expected, strict=True)]
        assert all(b != s for b, s in zip(bad, sound, strict=True))
    # Nearly every bit belongs to one record; those of an ArrayRecord's index to all.
    assert np.median(lost) == 1
    assert file_format == "array_record" or max(lost) <= 2


@pytest.mark.parametrize("window_shards", [None, 1])
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_damaged_records_are_replaced_or_masked_by_name(tmp_path, file_format, window_shards):
    """A label in the range, a photo and a stored checksum; the same after a restart."""
    path = write(tmp_path / "records", payloads(), file_format)
    content = bytearray(path.read_bytes())
    spans = tfrecord.scan_records(write(tmp_path / "plain", payloads()))
    plain = (tmp_path / "plain").read_bytes()
    for record, offset in ((3, 10), (11, -1), (17, 60)):
        start, length, _ = spans[record].tolist()
        content[content.index(plain[start : start + length]) + offset % length] ^= 4
    path.write_bytes(content)
    opened = source(path, file_format, window_shards)
    options = {"max_corrupt_share": 0.2, "canvas": 32}
    seen = []
    for start in (0, 0, 1):
        with data.train_batches(opened, 15, start_step=start, **options) as batches:
            seen.append([next(batches)["index"].tolist() for _ in range(2 - start)])
        assert not {3, 11, 17} & {i for batch in seen[-1] for i in batch}
    assert seen[0] == seen[1] and seen[0][1:] == seen[2]
    with data.eval_batches(opened, 30, image_size=16, **options) as batches:
        mask = next(batches)["mask"]
    assert np.flatnonzero(~mask).tolist() == [3, 11, 17]
    names = batches.health.corrupt_names
    assert names == {i: f"records record {i}" for i in (3, 11, 17)}
    with pytest.raises(data.CorruptShareExceeded, match="records record 3"):
        first_batches(data.eval_batches(opened, 30, 32, image_size=16), 1)


def test_a_damaged_length_costs_one_record(tmp_path):
    """The next sound header is searched for, also beyond the block that is searched at once."""
    records = payloads()
    records[5] += bytes(100)
    sound = write(tmp_path / "sound", records).read_bytes()
    spans = tfrecord.scan_records(str(tmp_path / "sound"))
    path = tmp_path / "damaged"
    for record in (0, 4, COUNT - 1):
        for byte in range(-12, 0):
            content = bytearray(sound)
            content[spans[record, 0] + byte] ^= 1
            path.write_bytes(content)
            found = tfrecord.scan_records(str(path))
            np.testing.assert_array_equal(found[:, :2], spans[:, :2])
            assert (found[:, 2] != spans[:, 2]).nonzero()[0].tolist() == [record]
    large = write(tmp_path / "large", [b"a", bytes(3 << 20), b"b"])
    content = bytearray(large.read_bytes())
    content[tfrecord.scan_records(large)[1, 0] - 12] ^= 1
    large.write_bytes(content)
    assert tfrecord.scan_records(large)[:, 1].tolist() == [1, 3 << 20, 1]


@pytest.mark.parametrize("cut", [1, 4, 30, 300])
def test_a_file_that_is_cut_short_is_named(tmp_path, cut):
    path = write(tmp_path / "cut.tfrecord", payloads())
    os.truncate(path, os.path.getsize(path) - cut)
    with pytest.raises(ConfigError, match="cut.tfrecord is damaged or cut short"):
        tfrecord.TFRecordFiles([path])


def test_the_index_is_stored_and_renewed(tmp_path, monkeypatch):
    paths = [write(tmp_path / name, payloads(n), "tfrecord") for name, n in (("a", 3), ("b", 5))]
    first = tfrecord.TFRecordFiles(paths)
    with monkeypatch.context() as patch:
        patch.setattr(tfrecord, "scan_records", None)
        again = tfrecord.TFRecordFiles(paths)
    assert again.lengths == first.lengths == (3, 5)
    assert again.read(1, 4) == first.read(1, 4) == payloads(5)[4]
    write(tmp_path / "b", payloads(4))
    assert tfrecord.TFRecordFiles(paths).lengths == (3, 4)
    # What is damaged later is told by the stored checksums, also where nothing else tells it.
    times = os.stat(paths[0])
    content = bytearray(paths[0].read_bytes())
    content[20] ^= 1
    paths[0].write_bytes(content)
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(data.CorruptImage, match="fails its checksum"):
        tfrecord.TFRecordFiles(paths).read(0, 0)


def test_many_files_are_read_without_keeping_them_open(tmp_path, monkeypatch):
    paths = [write(tmp_path / str(i), payloads(2)) for i in range(9)]
    expected = [tfrecord.TFRecordFiles(paths).read(i, 1) for i in range(9)]
    monkeypatch.setattr(local_files, "_MOST_OPEN_FILES", 8)
    before = len(os.listdir("/proc/self/fd"))
    opened = tfrecord.TFRecordFiles(paths)
    assert [opened.read(i, 1) for i in range(9)] == expected
    assert len(os.listdir("/proc/self/fd")) == before
    os.unlink(paths[4])
    with pytest.raises(data.CorruptImage, match="No such file"):
        opened.read(4, 1)


def test_array_record_reads_what_was_written(tmp_path):
    path = str(write(tmp_path / "a", payloads(), "array_record"))
    assert ArrayRecordFiles.read_whole(path) == payloads()
    assert [ArrayRecordFiles([path]).read(0, i) for i in (0, 29, 7)] == [
        payloads()[i] for i in (0, 29, 7)
    ]
