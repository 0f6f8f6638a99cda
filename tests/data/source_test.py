"""Sources: tfds, arrays, digits, and the errors when one is missing."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from deit_jax import data
from deit_jax.data import tfrecord
from deit_jax.errors import ConfigError


def array_records(source_dir, target_dir):
    """Rewrite a tfds folder of TFRecord files as ArrayRecord."""
    from array_record.python.array_record_module import ArrayRecordWriter

    target_dir.mkdir(parents=True)
    info = json.loads((source_dir / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    (target_dir / "dataset_info.json").write_text(json.dumps(info))
    for name in ("features.json", "label.labels.txt"):
        shutil.copyfile(source_dir / name, target_dir / name)
    for path in source_dir.glob("*validation.tfrecord*"):
        name = str(target_dir / path.name.replace("tfrecord", "array_record"))
        writer = ArrayRecordWriter(name, "group_size:1")
        for record in tfrecord.split_records(path.read_bytes(), str(path)):
            writer.write(record)
        writer.close()


@pytest.fixture(scope="module")
def photos(tfds_dir):
    return data.open_data(name="imagenet2012", data_dir=str(tfds_dir))


def test_tfds_records_are_those_that_tfds_reads(tfds_dir, photos):
    """Every validation record, in tfds's order, against tf.data."""
    import tensorflow as tf

    paths = sorted(map(str, (tfds_dir / "imagenet2012/5.1.0").glob("*validation*")))
    images, labels = photos.eval.get(np.arange(len(photos.eval)))
    examples = [
        tf.train.Example.FromString(record.numpy()).features.feature
        for record in tf.data.TFRecordDataset(paths)
    ]
    assert [e["image"].bytes_list.value[0] for e in examples] == images
    assert [e["label"].int64_list.value[0] for e in examples] == labels.tolist()


def test_tfds_names_sizes_and_slices(tfds_dir, photos):
    assert (len(photos.train), len(photos.eval), photos.num_classes) == (400, 100, 1000)
    assert photos.class_names[0] == "n01440764"
    part = data.open_data(
        name="imagenet2012:5.1.0",
        data_dir=str(tfds_dir),
        train_split="train[30%:]+validation",
        eval_split="train[:30%]",
    )
    # The slice ends inside a file.
    assert (len(part.train), len(part.eval)) == (380, 120)
    joined = part.eval.get(np.arange(120))[0] + part.train.get(np.arange(280))[0]
    assert joined == photos.train.get(np.arange(400))[0]
    assert part.train.record_name(0).endswith("00002-of-00008 record 20")


@pytest.mark.parametrize("window_shards", [None, 2])
def test_array_record_has_the_same_content(tfds_dir, photos, tmp_path, window_shards):
    array_records(tfds_dir / "imagenet2012/5.1.0", tmp_path / "imagenet2012/5.1.0")
    opened = data.open_data(
        name="imagenet2012",
        data_dir=str(tmp_path),
        train_split="validation",
        window_shards=window_shards,
    )
    indices = np.arange(0, 100, 7)
    expected, labels = photos.eval.get(indices)
    images, image_labels = opened.eval.get(indices)
    assert images == expected and np.array_equal(image_labels, labels)


def test_a_label_outside_the_classes_is_a_bad_record(tfds_dir, photos, tmp_path):
    target = tmp_path / "imagenet2012/5.1.0"
    shutil.copytree(tfds_dir / "imagenet2012/5.1.0", target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    features = json.loads((target / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "10"
    (target / "features.json").write_text(json.dumps(features))
    (target / "label.labels.txt").unlink()
    opened = data.open_data(name="imagenet2012", data_dir=str(tmp_path))
    records, labels = opened.train.get(np.arange(400))
    wrong = np.array([isinstance(record, data.CorruptImage) for record in records])
    true = photos.train.get(np.arange(400))[1]
    np.testing.assert_array_equal(wrong, true >= 10)
    np.testing.assert_array_equal(labels, np.where(wrong, 0, true))
    assert str(records[wrong.argmax()]) == f"label {true[wrong.argmax()]} is outside the 10 classes"


def test_record_damaged_around_the_image_counts_as_corrupt(tfds_dir, tmp_path):
    target = tmp_path / "cifar10/3.0.2"
    shutil.copytree(tfds_dir / "cifar10/3.0.2", target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    path = sorted(target.glob("*test*"))[0]
    start = tfrecord.scan_records(str(path))[7, 0]
    content = bytearray(path.read_bytes())
    content[start : start + 6] = b"\xff" * 6
    path.write_bytes(content)
    opened = data.open_data(name="cifar10", data_dir=str(tmp_path))
    options = {"batch_size": 10, "canvas": 32, "image_size": 32, "crop_ratio": 1.0}
    with data.eval_batches(opened.eval, **options, max_corrupt_share=0.1) as batches:
        mask = next(batches)["mask"]
    assert mask.tolist() == [i != 7 for i in range(10)]
    assert batches.health.corrupt_names == {7: f"{path.name} record 7"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", b""),
        ("dataset_info.json", b"\xff\xfe"),
        ("features.json", None),
        ("features.json", b'{"featuresDict": {"fea'),
        ("features.json", b'{"a": 1}'),
        ("label.labels.txt", b"airplane\nautomobile\n"),
        ("label.labels.txt", b"airplane\n" * 10),
        ("label.labels.txt", b"\xff" * 20),
    ],
)
def test_damaged_metadata_is_one_line_that_names_the_file(tfds_dir, tmp_path, name, content):
    source, target = tfds_dir / "cifar10/3.0.2", tmp_path / "cifar10/3.0.2"
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).symlink_to(path)
    (target / name).unlink()
    if content is not None:
        (target / name).write_bytes(content)
    where = "the metadata in" if content == b'{"a": 1}' else f"{name} is missing or damaged"
    with pytest.raises(ConfigError, match=f"{where}.*prepare the data set again") as error:
        data.open_data(name="cifar10", data_dir=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_window_start_reads_at_most_one_window(tfds_dir, monkeypatch):
    files = []
    read = tfrecord.TFRecordFiles.read_whole
    record = staticmethod(lambda path: (files.append(path), read(path))[1])
    monkeypatch.setattr(tfrecord.TFRecordFiles, "read_whole", record)
    for step in (0, 1, 10_000_000):
        opened = data.open_data(name="imagenet2012", data_dir=str(tfds_dir), window_shards=2)
        files.clear()
        with data.train_batches(
            opened.train, batch_size=10, canvas=64, start_step=step, prefetch=0
        ) as batches:
            next(batches)
        assert len(set(files)) == len(files) <= 2
    files.clear()
    with data.train_batches(opened.train, batch_size=10, canvas=64) as batches:
        for _ in range(40):
            next(batches)
    # An epoch reads every file once; the last batches read ahead into the next epoch.
    assert 8 <= len(files) <= 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "needs the name"),
        ({"name": "imagnet2012"}, "it has: imagenet2012.*nearest: imagenet2012"),
        ({"name": "mnist"}, "no prepared data set 'mnist'.*tfds build mnist --data_dir"),
        ({"name": "cifar10:9.9.9"}, "no version 9.9.9.*prepared: 3.0.2"),
        ({"name": "cifar10", "train_split": "trian"}, "unknown split.*'trian'; known: train"),
        ({"name": "cifar10", "eval_split": "test[90%:"}, "cannot be read"),
        ({"name": "cifar10", "label_key": "lable"}, "unknown feature.*'lable'; known: label"),
        ({"name": "cifar10", "image_key": "label"}, "is not an image"),
        (
            {"name": "cifar10", "window_shards": 0},
            "window_shards must be at least 1, or None, not 0",
        ),
        ({"source": "foldr"}, "unknown source 'foldr'; known: folder"),
    ],
)
def test_tfds_mistakes_name_what_would_work(tfds_dir, arguments, message):
    with pytest.raises(ConfigError, match=message):
        data.open_data(data_dir=str(tfds_dir), **arguments)


def test_missing_imagenet_names_archives_and_command(tmp_path):
    (tmp_path / "imagenet2012").mkdir()
    for data_dir in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="tfds build imagenet2012.*ILSVRC2012_img_train.tar"):
            data.open_data(name="imagenet2012", data_dir=str(data_dir))


def test_missing_shard_is_named(tfds_dir, tmp_path):
    target = tmp_path / "cifar10/3.0.2"
    shutil.copytree(tfds_dir / "cifar10/3.0.2", target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    (target / "cifar10-train.tfrecord-00002-of-00004").unlink()
    with pytest.raises(ConfigError, match="1 of the 4 files.*train.tfrecord-00002"):
        data.open_data(name="cifar10", data_dir=str(tmp_path))


def test_digits_split_is_fixed_and_stratified():
    digits = data.open_data(source="digits")
    assert (len(digits.train), len(digits.eval), digits.num_classes) == (1442, 355, 10)
    share = np.bincount(digits.eval.labels) / np.bincount(digits.train.labels)
    assert (abs(share - 0.25) < 0.01).all()
    assert digits.train.images.shape[1:] == (8, 8, 3) and digits.train.images.max() == 255
    # Part of every quickstart run's identity.
    assert digits.eval.labels[:12].tolist() == [5, 0, 9, 8, 7, 1, 2, 6, 3, 4, 0, 2]
    assert int(digits.eval.images.astype(np.int64).sum()) == 5_315_379


def npz(path, **overrides):
    images = np.zeros((6, 5, 4, 3), np.uint8)
    labels = np.arange(6) % 3
    content = {"train_images": images, "train_labels": labels}
    content |= {"test_images": images, "test_labels": labels} | overrides
    np.savez(path, **{k: v for k, v in content.items() if v is not None})
    return str(path)


def test_npz(tmp_path):
    gray = np.arange(6 * 20, dtype=np.uint8).reshape(6, 5, 4)
    path = npz(tmp_path / "a.npz", train_images=gray, class_names=np.array(["x", "y", "z"]))
    opened = data.open_data(source="arrays", path=path)
    assert opened.class_names == ("x", "y", "z") and opened.num_classes == 3
    (first,), _ = opened.train.get(np.array([4]))
    np.testing.assert_array_equal(first, np.stack([gray[4]] * 3, -1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"test_labels": None}, "has no test_labels; it has: test_images"),
        ({"train_images": np.zeros((6, 5, 4, 3), np.float32)}, "must be uint8"),
        ({"train_images": np.zeros((6, 5, 4, 1), np.uint8)}, "must be uint8"),
        ({"test_labels": np.arange(5)}, "labels must be integers"),
        ({"test_labels": np.arange(6) - 1}, "label -1 of a.npz test"),
        ({"class_names": np.array(["x", "y"])}, "outside the 2 classes"),
        ({"test_images": np.zeros((0, 5, 4, 3), np.uint8), "test_labels": np.arange(0)}, "empty"),
    ],
)
def test_npz_mistakes(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        data.open_data(source="arrays", path=npz(tmp_path / "a.npz", **overrides))


def test_files_that_are_not_npz(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no")
    with pytest.raises(ConfigError, match="not a readable .npz"):
        data.open_data(source="arrays", path=str(tmp_path / "a.npz"))
    with pytest.raises(ConfigError, match="no file"):
        data.open_data(source="arrays", path=str(tmp_path / "b.npz"))


def test_digits_and_arrays_need_no_tensorflow():
    """What does need it raises an error that names the package to install."""
    program = """
import sys
for name in ("tensorflow", "tensorflow_datasets"):
    sys.modules[name] = None
from deit_jax import data
from deit_jax.errors import ConfigError
digits = data.open_data(source="digits")
with data.train_batches(digits.train, batch_size=32, canvas=8) as batches:
    assert next(batches)["canvas"].any()
with data.eval_batches(digits.eval, batch_size=100, canvas=8, image_size=8, crop_ratio=1.0) as it:
    assert sum(b["mask"].sum() for b in it) == 355

def refuses(words, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except ConfigError as error:
        assert words in str(error), error
    else:
        raise SystemExit("no error")

refuses("pip install 'deit_jax[data]'", data.decode_image, b"\\xff\\xd8")
refuses("pip install 'deit_jax[data]'", data.open_data, source="folder", path="/")
refuses("pip install 'deit_jax[data]'", data.open_data, source="tfds", name="x")
sys.modules["sklearn.datasets"] = None
refuses("pip install 'deit_jax[quickstart]'", data.open_data, source="digits")
"""
    root = pathlib.Path(data.__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, timeout=60)


def test_tensorflow_datasets_that_does_not_load_is_one_line(tmp_path):
    """It logs the traceback of what it lacks and is then a module without contents."""
    (tmp_path / "tensorflow_datasets.py").write_text("""
from absl import logging
try:
    raise TypeError("gencode 6.31.1\\nruntime 5.29.6 of Protobuf")
except Exception as error:
    logging.exception(error)
""")
    program = "from deit_jax import data; data.open_data(source='tfds', name='imagenet2012')"
    root = pathlib.Path(data.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr.splitlines()[-1] == (
        "deit_jax.errors.ConfigError: tensorflow_datasets cannot be imported (gencode 6.31.1 "
        "runtime 5.29.6 of Protobuf); with protobuf 5: `pip install 'tensorflow-metadata<1.18'`"
    )
    assert "TypeError" not in done.stderr
