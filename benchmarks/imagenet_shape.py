"""A prepared data set of ImageNet's shape with tiny images, and the time to its first batch."""

import io
import json
import pathlib
import time

import numpy as np


def write_imagenet_shape(folder: str, template: str) -> None:
    """A prepared data set of 1,281,167 records in 1,024 files, all of one image of one pixel."""
    import google_crc32c
    from PIL import Image

    from deit_jax.data import tfrecord
    from deit_jax.data._tensorflow import tensorflow

    (source,) = pathlib.Path(template).expanduser().glob("imagenet2012/*/dataset_info.json")
    target = pathlib.Path(folder, "imagenet2012") / source.parent.name
    target.mkdir(parents=True)
    for name in ("features.json", "label.labels.txt"):
        (target / name).write_bytes((source.parent / name).read_bytes())
    with io.BytesIO() as file:
        Image.new("L", (1, 1)).save(file, "JPEG", optimize=True)
        image = file.getvalue()
    train = tensorflow().train
    feature = {
        "image": train.Feature(bytes_list=train.BytesList(value=[image])),
        "label": train.Feature(int64_list=train.Int64List(value=[7])),
        "file_name": train.Feature(bytes_list=train.BytesList(value=[b"n0_0.JPEG"])),
    }
    payload = train.Example(features=train.Features(feature=feature)).SerializeToString()
    checksum = lambda content: tfrecord.masked(google_crc32c.value(content)).to_bytes(4, "little")
    length = len(payload).to_bytes(8, "little")
    record = length + checksum(length) + payload + checksum(payload)
    info = json.loads(source.read_text())
    for split, records, files in (("train", 1_281_167, 1_024), ("validation", 50_000, 64)):
        lengths = np.diff(np.linspace(0, records, files + 1).astype(int))
        for i, count in enumerate(lengths):
            name = f"imagenet2012-{split}.tfrecord-{i:05d}-of-{files:05d}"
            (target / name).write_bytes(record * int(count))
        (entry,) = [entry for entry in info["splits"] if entry["name"] == split]
        entry["shardLengths"] = [str(count) for count in lengths]
    (target / "dataset_info.json").write_text(json.dumps(info))


def measure_start(data_dir: str) -> float:
    """Seconds from opening a data set to its first batch."""
    from deit_jax import data
    from deit_jax.data._tensorflow import tensorflow

    tensorflow()
    import tensorflow_datasets  # noqa: F401 - imports are not what is measured

    start = time.perf_counter()
    opened = data.open_data(name="imagenet2012", data_dir=data_dir)
    with data.train_batches(opened.train, 1024, canvas=512, repeats=3, mix_group=64) as batches:
        next(batches)
        return time.perf_counter() - start
