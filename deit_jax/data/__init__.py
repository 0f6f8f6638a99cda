"""Data: sources of records, their order, decoding, host batches, transfer to the device.

Importing this needs no TensorFlow; decoding image files does.
"""

from deit_jax.data.arrays import ArraySource, arrays_data
from deit_jax.data.batches import BatchIterator, CorruptShareExceeded, Health
from deit_jax.data.decode import CorruptImage, decode_image
from deit_jax.data.open import SOURCES, open_data
from deit_jax.data.order import (
    canvas_count,
    distinct_images_per_epoch,
    steps_per_epoch,
)
from deit_jax.data.pipeline import eval_batches, train_batches
from deit_jax.data.source import Data, Source, check_labels
from deit_jax.data.transfer import prefetch_to_device

__all__ = [
    "ArraySource",
    "BatchIterator",
    "CorruptImage",
    "CorruptShareExceeded",
    "Data",
    "Health",
    "SOURCES",
    "Source",
    "arrays_data",
    "canvas_count",
    "check_labels",
    "decode_image",
    "distinct_images_per_epoch",
    "eval_batches",
    "open_data",
    "prefetch_to_device",
    "steps_per_epoch",
    "train_batches",
]
