"""Data sets in memory: uint8 arrays, an .npz file, the digits of scikit-learn.

Nothing here needs TensorFlow.
"""

import pathlib
import zipfile
from typing import Any

import numpy as np

from deit_jax.data.source import Data, Source, check_labels
from deit_jax.errors import ConfigError

DIGITS_TEST_EVERY = 5


class ArraySource(Source):
    """Images in memory, uint8 [n, h, w, 3], and int labels [n]."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, name: str = "arrays"):
        self.images = images
        self.labels = np.asarray(labels, np.int64)
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def get(self, indices: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        return [self.images[i] for i in indices], self.labels[np.asarray(indices)]

    def record_name(self, index: int) -> str:
        return f"{self.name}[{index}]"


def arrays_data(
    *,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    class_names: tuple[str, ...] | None = None,
    name: str = "arrays",
) -> Data:
    """A data set of arrays: images uint8 [n, h, w, 3] or [n, h, w] (gray), labels int [n].

    The number of classes is that of `class_names`, or the largest label of both splits + 1.

    Raises:
        ConfigError: wrong dtype or shape, an empty split, labels outside the classes.
    """
    sources = []
    for split, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        sources.append(_checked(np.asarray(images), np.asarray(labels), f"{name} {split}"))
    if class_names is None:
        num_classes = int(max(s.labels.max() for s in sources)) + 1
    else:
        num_classes = len(class_names)
    for one in sources:
        check_labels(one.labels, num_classes, one.name)
    train, test = sources
    return Data(
        train=train,
        eval=test,
        num_classes=num_classes,
        class_names=class_names,
        description=f"{name}: {len(train)} train, {len(test)} test images in memory, "
        f"{num_classes} classes",
    )


def _checked(images: np.ndarray, labels: np.ndarray, name: str) -> ArraySource:
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
    return ArraySource(images, labels, name=name)


def open_arrays(*, path: str | None = None) -> Data:
    """Arrays of an .npz file, in memory.

    Args:
        path: of the file, with the keys train_images, train_labels, test_images, test_labels
            and, if the classes have names, class_names; see `arrays_data`.

    Raises:
        ConfigError: no such file, not an .npz file, arrays that are missing or wrong.
    """
    required = ("train_images", "train_labels", "test_images", "test_labels")
    if path is None:
        raise ConfigError(f"source 'arrays' needs path, an .npz file with {', '.join(required)}")
    if not pathlib.Path(path).is_file():
        raise ConfigError(
            f"no file {path}; source 'arrays' reads an .npz file with {', '.join(required)}"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in required if key not in file]
            if missing:
                raise ConfigError(
                    f"{path} has no {', '.join(missing)}; it has: {', '.join(sorted(file))}"
                )
            content = {key: file[key] for key in required}
            names = tuple(map(str, file["class_names"])) if "class_names" in file else None
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a readable .npz file: {error}") from error
    return arrays_data(**content, class_names=names, name=pathlib.Path(path).name)


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
            "the digits come with scikit-learn: `pip install scikit-learn`"
        ) from error
    digits: Any = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    place_in_class = np.empty(len(labels), np.int64)
    for k in range(10):
        place_in_class[labels == k] = np.arange(np.sum(labels == k))
    test = place_in_class % DIGITS_TEST_EVERY == DIGITS_TEST_EVERY - 1
    return arrays_data(
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(map(str, range(10))),
        name="digits",
    )
