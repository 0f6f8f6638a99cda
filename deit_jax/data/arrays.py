"""Data sets in memory: uint8 arrays of an .npz file, the digits of scikit-learn.

Nothing here needs TensorFlow.
"""

import zipfile
from typing import Any

import numpy as np

from deit_jax import storage
from deit_jax.data.source import Data, Source, check_labels
from deit_jax.errors import ConfigError

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")


class ArraySource(Source):
    """Images in memory, uint8 [n, h, w, 3], and int labels [n]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str):
        self.images = images
        self.labels = np.asarray(labels, np.int64)
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def get(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return [self.images[i] for i in indices], self.labels[np.asarray(indices)]

    def record_name(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_arrays(*, path: str | None = None) -> Data:
    """Arrays of an .npz file, in memory.

    Args:
        path: of the file: train_images and test_images, uint8 [n, h, w, 3] or [n, h, w] (gray);
            train_labels and test_labels, int [n]; and, if the classes have names, class_names.
            Without names there are as many classes as the largest label needs.

    Raises:
        ConfigError: no such file, not an .npz file, an array that is missing or of a wrong
            dtype or shape, an empty split, labels outside the classes.
    """
    content = f"an .npz file with {', '.join(_ARRAYS)}"
    if path is None:
        raise ConfigError(f"source 'arrays' needs path, {content}")
    located = storage.path(path)
    if not located.is_file():
        raise ConfigError(f"no file {path}; source 'arrays' reads {content}")
    try:
        with located.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            present = sorted(file)
            arrays = {key: file[key] for key in (*_ARRAYS, "class_names") if key in file}
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a readable .npz file: {error}") from error
    missing = [key for key in _ARRAYS if key not in arrays]
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}; it has: {', '.join(present)}")
    names = arrays.pop("class_names", None)
    return _data(located.name, None if names is None else tuple(map(str, names)), arrays)


def open_digits() -> Data:
    """The 1,797 handwritten digits of 8x8 pixels bundled with scikit-learn.

    From UCI (Alpaydin & Kaynak). The split is fixed: of the images of each class, in the
    order of the file, every fifth is for test (1,442 train, 355 test, stratified). Gray
    levels 0..16 become 0..255.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "the digits come with scikit-learn: `pip install 'deit_jax[quickstart]'`"
        ) from error
    digits: Any = load_digits()
    images, labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target
    test = np.zeros(len(labels), bool)
    for k in range(10):
        test[np.flatnonzero(labels == k)[4::5]] = True
    arrays = (images[~test], labels[~test], images[test], labels[test])
    names = tuple(map(str, range(10)))
    return _data("digits", names, dict(zip(_ARRAYS, arrays, strict=True)))


def _data(name: str, class_names: tuple[str, ...] | None, arrays: dict[str, np.ndarray]) -> Data:
    train, test = (
        _source(arrays[f"{split}_images"], arrays[f"{split}_labels"], f"{name} {split}")
        for split in ("train", "test")
    )
    if class_names is None:
        num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    else:
        num_classes = len(class_names)
    for source in (train, test):
        check_labels(source.labels, num_classes, source.name)
    return Data(
        train=train,
        eval=test,
        num_classes=num_classes,
        class_names=class_names,
        description=f"{name}: {len(train)} train, {len(test)} test images in memory, "
        f"{num_classes} classes",
    )


def _source(images: np.ndarray, labels: np.ndarray, name: str) -> ArraySource:
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ConfigError(
            f"{name}: images must be uint8 [n, h, w, 3] or [n, h, w], "
            f"not {images.dtype} {list(images.shape)}"
        )
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"{name}: labels must be integers [{len(images)}], "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    if not len(images):
        raise ConfigError(f"{name}: the split is empty")
    return ArraySource(images, labels, name)
