"""The same photos in every format give the same batches; shards, patterns and their damage."""

import io
import json
import tarfile

import numpy as np
import pytest
from data.decode_test import RGB, encode
from data.example_test import serialize
from data.own_photos_test import zipped
from data.pipeline_test import digest, first_batches
from data.tfrecord_test import write

from deit_jax import data
from deit_jax.data import shards, tar_shards
from deit_jax.errors import ConfigError

CLASSES = 5
SHARDS = 3
# Of 30 and 12 records.
LABELS = {"train": np.arange(30) // 6, "val": np.arange(12) * CLASSES // 12}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def small_photos():
    """Split -> [(PNG of 24 x 18 pixels, label)], sorted by label."""
    images = iter([encode(RGB.rotate(8 * i).resize((24, 18)), "PNG") for i in range(42)])
    return {split: [(next(images), int(y)) for y in LABELS[split]] for split in LABELS}


def parts(items):
    """Three runs of the items, of different lengths."""
    cuts = [0, len(items) // 2, len(items) // 2 + 3, len(items)]
    return [items[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


def write_shards(folder, split, examples, file_format):
    for i, part in enumerate(parts(examples)):
        path = folder / f"set-{split}.{file_format}-{i:05d}-of-{SHARDS:05d}"
        write(path, [serialize(image=x, label=[y]) for x, y in part], file_format)


def as_tfds(photos, root, file_format="tfrecord"):
    import tensorflow_datasets as tfds

    folder = root / "set" / "1.0.0"
    folder.mkdir(parents=True)
    infos = []
    for split, examples in photos.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name="set", split=split, filetype_suffix="tfrecord", data_dir=str(folder)
        )
        lengths = [len(part) for part in parts(examples)]
        info = {"shard_lengths": lengths, "num_bytes": 0, "filename_template": template}
        infos.append(tfds.core.SplitInfo(name=split, **info))
        write_shards(folder, split, examples, "tfrecord")
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=list("abcde")),
    }
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder), features=tfds.features.FeaturesDict(features), split_infos=infos
    )
    if file_format != "tfrecord":
        # tfds writes no metadata for files that are there already in this format.
        for split, examples in photos.items():
            write_shards(folder, split, examples, file_format)
        info = folder / "dataset_info.json"
        info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": file_format}))
        for path in folder.glob("*.tfrecord-*"):
            path.unlink()
    return {"source": "tfds", "name": "set", "data_dir": str(root)}


def as_folder(photos, root):
    for split, examples in photos.items():
        for i, (image, label) in enumerate(examples):
            folder = root / split / "abcde"[label]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i:04d}.{'png' if image[1:4] == b'PNG' else 'jpg'}").write_bytes(image)
    return {"source": "folder", "path": str(root), "exif_orientation": False}


def as_tar(photos, root):
    """The labels in .cls, in .json, or in both; other files between; names beyond 100 letters."""
    root.mkdir()
    for split, examples in photos.items():
        for s, part in enumerate(parts(examples)):
            with tarfile.open(root / f"set-{split}-{s:04d}.tar", "w") as tar:
                for i, (image, label) in enumerate(part):
                    key = f"{'long/' * 30 * (s == 1)}{i:06d}"
                    files = {"txt": b"a caption", "jpg": image}
                    if s != 1:
                        files["cls"] = str(label).encode()
                    if s:
                        files["json"] = json.dumps({"label": label, "w": 1}).encode()
                    for extension, content in files.items():
                        member = tarfile.TarInfo(f"{key}.{extension}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
    (root / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    return {"source": "tar", "path": str(root)}


def as_parquet(photos, root, rows=4, **options):
    """As `datasets` writes it: names in the schema's metadata, row groups of few rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    names = {"label": {"names": list("abcde"), "_type": "ClassLabel"}}
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": names}})},
    )
    for split, examples in photos.items():
        for s, part in enumerate(parts(examples)):
            columns = {
                "image": [
                    {"bytes": image, "path": f"{i}.jpg"} for i, (image, _) in enumerate(part)
                ],
                "label": [label for _, label in part],
            }
            name = "validation" if split == "val" else split
            path = root / "data" / f"{name}-{s:05d}-of-{SHARDS:05d}-1a2b3c.parquet"
            table = pa.table(columns, schema=schema)
            pq.write_table(table, path, row_group_size=rows, **options)
    return {"source": "parquet", "path": str(root)}


def as_arrays(photos, root):
    root.mkdir()
    arrays = {"class_names": np.array(list("abcde"))}
    for split, examples in photos.items():
        name = {"train": "train", "val": "test"}[split]
        arrays[f"{name}_images"] = np.stack([data.decode_image(image) for image, _ in examples])
        arrays[f"{name}_labels"] = np.array([label for _, label in examples])
    np.savez(root / "a.npz", **arrays)
    return {"source": "arrays", "path": str(root / "a.npz")}


def as_zip(photos, root):
    as_folder(photos, root / "photos")
    path = zipped(root / "photos", root / "photos.zip", top="photos/")
    return {"source": "folder", "path": path, "exif_orientation": False}


FORMATS = {
    "folder": as_folder,
    "tfrecord": as_tfds,
    "array_record": lambda photos, root: as_tfds(photos, root, "array_record"),
    "zip": as_zip,
    "tar": as_tar,
    "parquet": as_parquet,
    "arrays": as_arrays,
}


def content(options, canvas=64, batch_size=8, steps=5):
    """What two epochs of training and one of evaluation consist of, and what is said of it."""
    opened = data.open_data(**options)
    training = {"canvas": canvas, "repeats": 2, "seed": 3, "max_corrupt_share": 0.0}
    return (
        digest(first_batches(data.train_batches(opened.train, batch_size, **training), steps)),
        digest(list(data.eval_batches(opened.eval, batch_size, canvas, image_size=32))),
        len(opened.train),
        len(opened.eval),
        opened.num_classes,
        opened.class_names,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return content(as_folder(small_photos(), tmp_path_factory.mktemp("folder")))


@pytest.mark.parametrize("file_format", list(FORMATS)[1:])
def test_every_format_gives_the_batches_of_the_folder(file_format, expected, tmp_path):
    options = FORMATS[file_format](small_photos(), tmp_path / "data")
    assert content(options) == expected == content(options)
    assert expected[2:] == (30, 12, CLASSES, tuple("abcde"))


@pytest.fixture(scope="module")
def real_photos(tfds_dir):
    """The 500 photos, with five classes in the order of the records."""
    opened = data.open_data(name="imagenet2012", data_dir=str(tfds_dir))
    photos = {}
    for split, source in (("train", opened.train), ("val", opened.eval)):
        images, _ = source.get(np.arange(len(source)))
        photos[split] = [(image, i * CLASSES // len(images)) for i, image in enumerate(images)]
    return photos


@pytest.mark.long
def test_500_photos_give_the_same_batches_in_every_format(real_photos, tmp_path):
    """All but arrays, whose images are of one size: 200 batches of training with repeats."""
    digests = {
        name: content(make(real_photos, tmp_path / name), canvas=128, batch_size=50, steps=16)
        for name, make in FORMATS.items()
        if name != "arrays"
    }
    assert set(digests.values()) == {digests["folder"]} and digests["folder"][2:4] == (400, 100)


@pytest.mark.parametrize("window_shards", [1, 2, 100])
def test_parquet_in_windows_shows_every_row_once(tmp_path, window_shards):
    options = as_parquet(small_photos(), tmp_path / "data")
    opened = data.open_data(**options, window_shards=window_shards)
    for start in (0, 5):
        batches = data.train_batches(opened.train, 6, canvas=32, start_step=start)
        seen = [batch["index"].tolist() for batch in first_batches(batches, 5)]
        assert sorted(sum(seen, [])) == list(range(30))
    assert sum(opened.train.shard_lengths) == 30 and len(opened.train.shard_lengths) > SHARDS


def test_a_damaged_row_group_is_bad_rows_by_name(tmp_path):
    options = as_parquet(
        small_photos(), tmp_path / "data", write_page_checksum=True, compression="NONE"
    )
    path = sorted((tmp_path / "data" / "data").glob("train*"))[2]
    sound, _ = data.open_data(**options).train.get(np.arange(30))
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(sound[-1][40:60])] ^= 1
    path.write_bytes(damaged)
    train = data.open_data(**options).train
    records, _ = train.get(np.arange(30))
    bad = [i for i, record in enumerate(records) if isinstance(record, data.CorruptImage)]
    assert bad == [26, 27, 28, 29] or bad == [28, 29], bad
    assert train.record_name(29) == f"{path} row 11" and "is damaged" in str(records[29])
    assert [r for r in records if isinstance(r, bytes)] == sound[: bad[0]]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=f"{path.name} is damaged or not a parquet file"):
        data.open_data(**options)


def test_labels_that_are_wrong_are_bad_records(tmp_path):
    photos = small_photos()
    photos["train"][3] = photos["train"][3][0], 77
    photos["train"][4] = photos["train"][4][0], -1
    for make in (as_tar, as_parquet):
        opened = data.open_data(**make(photos, tmp_path / make.__name__))
        records, labels = opened.train.get(np.arange(30))
        bad = [i for i, record in enumerate(records) if isinstance(record, data.CorruptImage)]
        assert bad == [3, 4] and labels[[3, 4]].tolist() == [0, 0]
        assert str(records[3]) == "label 77 is outside the 5 classes"


@pytest.mark.parametrize("damage", ["header", "cut", "cut at a member", "text"])
def test_a_damaged_tar_is_named(tmp_path, damage):
    options = as_tar(small_photos(), tmp_path / "data")
    path = tmp_path / "data" / "set-train-0002.tar"
    whole = bytearray(path.read_bytes())
    middle = int(tar_shards.scan_tar(str(path))[5, 0]) - 512
    if damage == "header":
        whole[middle + 3] ^= 1
    path.write_bytes(
        {"cut": whole[: middle + 700], "cut at a member": whole[:middle], "text": b"x" * 5000}.get(
            damage, whole
        )
    )
    with pytest.raises(ConfigError, match="train-0002.tar is damaged, cut short or not a tar file"):
        data.open_data(**options)


def test_records_of_a_tar_have_names_and_may_lack_labels(tmp_path):
    as_tar(small_photos(), tmp_path / "data")
    path = tmp_path / "data" / "set-train-0000.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in (("a/1.jpg", b"x"), ("a/1.cls", b"dog"), ("a/2.jpg", b"y")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    opened = data.open_data(source="tar", path=str(tmp_path / "data"))
    records, _ = opened.train.get(np.array([0, 1]))
    assert all("no .cls or .json with a number" in str(record) for record in records)
    assert opened.train.record_name(1).startswith(f"{path}: a/2.jpg")


def test_splits_by_pattern_folder_or_name(tmp_path):
    as_tar(small_photos(), tmp_path / "data")
    (tmp_path / "held").mkdir()
    (tmp_path / "data" / "set-val-0002.tar").rename(tmp_path / "held" / "x.tar")
    train, held = shards.find_splits(
        None,
        str(tmp_path / "data" / "set-train-{0000..0001}.tar"),
        str(tmp_path / "held" / "*.tar"),
        ".tar",
    )
    assert [path[-8:-4] for path in train] == ["0000", "0001"] and len(held) == 1
    found = shards.find_splits(str(tmp_path), "data", "held", ".tar")
    assert list(map(len, found)) == [5, 1]
    assert shards.expand_braces("{a,b}-{08..10}") == [
        f"{x}-{n}" for x in "ab" for n in ("08", "09", "10")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "path is missing: a folder of"),
        ({"path": "absent"}, "path=absent is not a folder"),
        ({"path": ".", "train_split": "t-{0..3}.tar"}, "4 of the 4 files of .*first is .*t-0.tar"),
        ({"path": "."}, "no \\*.tar files of split 'train'.*gunzip .*train-0.tar.gz"),
    ],
)
def test_shards_that_are_missing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train-0.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=message):
        data.open_data(source="tar", **options)


def test_parquet_without_pyarrow_or_columns(tmp_path, monkeypatch):
    options = as_parquet(small_photos(), tmp_path / "data")
    with pytest.raises(ConfigError, match="unknown column of .*'img'; known: image, label"):
        data.open_data(**options, image_key="img")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow .*pip install 'deit_jax\[parquet\]'"):
        data.open_data(**options)
