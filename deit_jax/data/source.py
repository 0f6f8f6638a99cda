"""What a data set offers: `Source` (records by number) and `Data` (two sources and the classes)."""

import dataclasses
from typing import Any, Protocol

import numpy as np

from deit_jax.errors import ConfigError


class CorruptImage(ValueError):
    """A record is not an image that can be read and decoded; says why."""


Record = bytes | np.ndarray | CorruptImage


class Source(Protocol):
    """Records by number, with their labels.

    A record is an encoded image (bytes), a uint8 [h, w, 3] array, or the `CorruptImage` that
    says why it cannot be read.

    `get` must be safe to call from several threads at once.

    Attributes:
        window_shards: files that are read whole at a time, with the order permuted inside
            such windows; None: any record can be read at any time.
        shard_lengths: with windows, the number of records in each file, in order.
        exif_orientation: encoded images are turned as their EXIF orientation says.
        labels: int64 [len] where they are known without reading the records, else None.
    """

    labels: Any = None
    exif_orientation: bool = False
    window_shards: int | None = None
    shard_lengths: tuple[int, ...] = ()

    def __len__(self) -> int: ...

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        """Records and int64 labels of the given record numbers, int [k]."""
        ...

    def record_name(self, index: int) -> str:
        """A name by which a user finds the record again."""
        ...

    def hint(self, indices: np.ndarray) -> None:
        """With windows, called with records that will be read soon."""


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set opened for training and evaluation.

    Attributes:
        train, eval: the two sources.
        num_classes: K; labels are 0..K-1.
        class_names: K names in the order of the labels, or None when the set has none.
        description: one line for the log: what was opened, with sizes.
        notes: lines on what the user may not expect, such as files that were ignored.
    """

    train: Source
    eval: Source
    num_classes: int
    class_names: tuple[str, ...] | None
    description: str
    notes: tuple[str, ...] = ()


def check_window(window_shards: int | None) -> None:
    """Raises ConfigError unless it is None or the number of files of a window."""
    if window_shards is not None and window_shards < 1:
        raise ConfigError(f"window_shards must be at least 1, or None, not {window_shards}")


def check_num_classes(num_classes: int | None) -> None:
    """Raises ConfigError unless it is None or a number of classes."""
    if num_classes is not None and not 1 <= num_classes <= 2**24:
        raise ConfigError(f"num_classes must be 1 to {2**24:,}, or None, not {num_classes}")


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raise ConfigError when a label is outside 0..num_classes-1, naming the first such.

    Without the check an out-of-range label trains silently: a one-hot row of zeros has
    loss 0, and a negative index wraps.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ConfigError(
            f"label {labels[wrong[0]]} of {where} (position {wrong[0]}) is outside the "
            f"{num_classes} classes 0..{num_classes - 1}"
        )
