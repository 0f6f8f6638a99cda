"""Data: sources of records, their order, decoding, host batches, transfer to the device.

    open.py           the table of data formats, SOURCES, and `open_data`
    source.py         what a format provides: `Source` and `Data`
    tfds_sets.py  folder.py  tar_shards.py  parquet.py  arrays.py
                      the formats; tfds reads files through readers.py (FILE_FORMATS: TFRecord,
                      ArrayRecord) and their records through example.py
    order.py          which record goes to which row at which step
    photo_files.py  splits.py  repeated.py  all_photos.py
                      own photos: folders and archives, their splits, few of them; all as one
    obtain.py         own photos on this machine, from wherever a notebook's reader has them
    shards.py  local_files.py
                      files of a split; bytes at a position, and indexes that are made once
    formats.py  headers.py  exif.py  decode.py  cmyk.py  resize.py  cubic.py
                      image files to pixels, equal to Pillow's
    pipeline.py  batches.py
                      batches in order, with counts of what was in them
    canvases.py  feed.py
                      the rows of a batch, and the tf.data graph that fills them
    transfer.py       the transfer to the device

A new data format is a class and a function, in a new module, and one line:

1. a subclass of `Source` with `__len__`, `get(indices) -> (records, labels)`, safe to call from
   several threads, and `record_name(index)`; a record is an encoded image (bytes), uint8
   [h, w, 3], or a `CorruptImage` where it cannot be read;
2. a function that returns `Data`, whose keyword-only parameters are its options and whose
   docstring begins with what it is; `check_labels` checks labels;
3. its line in `SOURCES`: `"mine": open_mine`. A config then sets `data.source = "mine"`.

A new file format of prepared data sets is a class, see `readers.FILE_FORMATS`, and its line there.

Importing this needs no TensorFlow, and arrays never do; decoding image files does.
"""

from deit_jax.data.batches import BatchIterator, CorruptShareExceeded, Health
from deit_jax.data.decode import decode_image
from deit_jax.data.obtain import obtain_photos
from deit_jax.data.open import SOURCES, open_data
from deit_jax.data.order import (
    canvas_count,
    canvas_orders,
    distinct_images_per_epoch,
    steps_per_epoch,
)
from deit_jax.data.pipeline import MOST_CANVAS, check_reading, eval_batches, train_batches
from deit_jax.data.repeated import Repeated
from deit_jax.data.source import CorruptImage, Data, Source, check_labels, check_window
from deit_jax.data.transfer import prefetch_to_device

__all__ = [
    "BatchIterator",
    "CorruptImage",
    "CorruptShareExceeded",
    "Data",
    "Health",
    "MOST_CANVAS",
    "Repeated",
    "SOURCES",
    "Source",
    "canvas_count",
    "canvas_orders",
    "check_labels",
    "check_reading",
    "check_window",
    "decode_image",
    "distinct_images_per_epoch",
    "eval_batches",
    "obtain_photos",
    "open_data",
    "prefetch_to_device",
    "steps_per_epoch",
    "train_batches",
]
