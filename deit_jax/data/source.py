"""Where records come from: `open_data` and what every source offers."""

import dataclasses
from typing import Protocol

import numpy as np

from deit_jax.data._tensorflow import require_tensorflow
from deit_jax.errors import ConfigError, unknown

Record = bytes | np.ndarray


class Source(Protocol):
    """Records by number: encoded images (bytes) or uint8 [h, w, 3] arrays, with their labels.

    `get` must be safe to call from several threads at once.

    Attributes:
        shard_lengths: records in each file, in order, for a set that is stored in a few
            large files; None otherwise. With it goes `hint(indices)`, called in the window
            mode with records that will be asked for soon.
    """

    shard_lengths: tuple[int, ...] | None

    def __len__(self) -> int: ...

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        """Records and int64 labels of the given record numbers, int [k]."""

    def record_name(self, index: int) -> str:
        """A name under which a user finds the record again."""


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set opened for training and evaluation.

    Attributes:
        train, eval: the two sources.
        num_classes: K; labels are 0..K-1.
        class_names: K names in the order of the labels, or None when the set has none.
        description: one line for the log: what was opened, with sizes.
    """

    train: Source
    eval: Source
    num_classes: int
    class_names: tuple[str, ...] | None
    description: str


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


def open_data(
    *,
    source: str = "tfds",
    name: str | None = None,
    data_dir: str | None = None,
    path: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
    window_shards: int | None = None,
) -> Data:
    """Open a data set for reading; never downloads, never writes to the data set.

    Args:
        source: 'tfds' (a prepared TensorFlow data set: `name`, `data_dir`), 'folder'
            (`path`/train/<class>/*.jpg, `path`/val/<class>/*.jpg), 'arrays' (`path` of an
            .npz with train_images, train_labels, test_images, test_labels), or 'digits'
            (the 1,797 handwritten digits that scikit-learn bundles).
        name: of a tfds set: 'imagenet2012', 'cifar10:3.0.2', 'set/config'.
        data_dir: where tfds has prepared it; None: tfds's own default,
            $TFDS_DATA_DIR or ~/tensorflow_datasets.
        path: of a folder or an .npz file.
        train_split, eval_split: split names, for tfds with its slices ('train[:90%]',
            'train+validation'); None: 'train', and the first of validation, val, test
            that exists.
        image_key, label_key: features of a tfds record.
        window_shards: read that many whole files at a time and shuffle inside them, for
            object stores where positional reads are slow; None: positional reads, full shuffle.

    Raises:
        ConfigError: unknown names, missing or empty data, labels outside the classes; the
            message names what exists and the command that prepares what does not.
    """
    if source not in _OPENERS:
        raise unknown("data source", source, _OPENERS)
    if window_shards is not None and source != "tfds":
        raise ConfigError(f"window_shards reads tfds files; source {source!r} has none")
    return _OPENERS[source](
        name=name,
        data_dir=data_dir,
        path=path,
        train_split=train_split,
        eval_split=eval_split,
        image_key=image_key,
        label_key=label_key,
        window_shards=window_shards,
    )


def _open_tfds(*, path, **kwargs) -> Data:
    from deit_jax.data import tfds_sets

    require_tensorflow()
    if path is not None:
        raise ConfigError("source 'tfds' takes name and data_dir, not path")
    return tfds_sets.open_tfds(**kwargs)


def _open_folder(*, path, train_split, eval_split, **_) -> Data:
    from deit_jax.data import folder

    require_tensorflow()
    return folder.open_folder(path=path, train_split=train_split, eval_split=eval_split)


def _open_arrays(*, path, **_) -> Data:
    from deit_jax.data import arrays

    return arrays.open_npz(path=path)


def _open_digits(**_) -> Data:
    from deit_jax.data import arrays

    return arrays.open_digits()


_OPENERS = {
    "tfds": _open_tfds,
    "folder": _open_folder,
    "arrays": _open_arrays,
    "digits": _open_digits,
}
