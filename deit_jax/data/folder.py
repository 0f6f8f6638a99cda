"""Image folders: `path/train/<class>/*.jpg`, `path/val/<class>/*.jpg`."""

import contextlib
import itertools
import os
import pathlib
import stat
from collections.abc import Iterator

import numpy as np

from deit_jax.data._tensorflow import require_tensorflow
from deit_jax.data.source import CorruptImage, Data, Record, Source
from deit_jax.errors import ConfigError, close_matches, unknown

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_EVAL_NAMES = ("val", "validation", "valid", "test")


def read_file(path: str | os.PathLike) -> Record:
    """The content of an image file, or the `CorruptImage` that says why it cannot be read.

    Nothing but a regular file is opened: reading from a pipe could wait for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return CorruptImage("not a regular file")
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        return CorruptImage(error.strerror or str(error))


class FolderSource(Source):
    """Files of one split, sorted by class, then by name."""

    def __init__(self, files: list[str], labels: np.ndarray):
        self._files = files
        self._labels = labels

    def __len__(self) -> int:
        return len(self._files)

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        images = [read_file(self._files[index]) for index in indices]
        return images, self._labels[np.asarray(indices)]

    def record_name(self, index: int) -> str:
        return self._files[index]


def open_folder(
    *, path: str | None = None, train_split: str | None = None, eval_split: str | None = None
) -> Data:
    """Image files in folders, one folder per class: PATH/train/<class>/*.jpg.

    The classes are the folders of the training split, sorted by name, as torchvision's
    ImageFolder numbers them. Files without an image's extension are ignored.

    Args:
        path: the folder of the splits.
        train_split, eval_split: names of the split folders; None: train, and the first of
            val, validation, valid, test that exists.

    Raises:
        ConfigError: a missing path or split, a folder that cannot be read, a class without
            images, a class that only the evaluation split has.
    """
    require_tensorflow()
    layout = "train/<class>/*.jpg and val/<class>/*.jpg"
    if path is None:
        raise ConfigError(f"source 'folder' needs path, a folder with {layout}")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"no folder {root}; source 'folder' reads {layout} in it")
    with _readable(root):
        present = sorted(p.name for p in root.iterdir() if p.is_dir())
    train_split = train_split or "train"
    if eval_split is None:
        eval_split = next((name for name in _EVAL_NAMES if name in present), "val")
    if not present:
        raise ConfigError(f"{root} is empty; source 'folder' reads {layout} in it")
    for split in (train_split, eval_split):
        if split not in present:
            raise unknown(f"split folder of {root}", split, present)
    names = _class_names(root / train_split)
    train = _scan(root / train_split, names)
    extra = sorted(set(_class_names(root / eval_split)) - set(names))
    if extra:
        raise ConfigError(
            f"{root / eval_split} has {len(extra)} class folder(s) that {train_split} lacks: "
            f"{', '.join(extra[:5])}; {train_split} has: {close_matches(extra[0], names)}"
        )
    evaluation = _scan(root / eval_split, names, all_classes=False)
    return Data(
        train=train,
        eval=evaluation,
        num_classes=len(names),
        class_names=tuple(names),
        description=f"{root}: {train_split} {len(train)}, {eval_split} {len(evaluation)} images, "
        f"{len(names)} classes",
    )


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise ConfigError(f"folder {where} cannot be read: {error.strerror}") from error


def _class_names(split: pathlib.Path) -> list[str]:
    with _readable(split), os.scandir(split) as entries:
        names = sorted(e.name for e in entries if e.name[0] != "." and e.is_dir())
    if not names:
        raise ConfigError(f"{split} has no class folders; images belong in {split}/<class>/")
    return names


def _scan(split: pathlib.Path, names: list[str], *, all_classes: bool = True) -> FolderSource:
    with _readable(split):
        images = [_images(split / name) for name in names]
    empty = [name for name, files in zip(names, images, strict=True) if not files]
    if empty and (all_classes or len(empty) == len(names)):
        raise ConfigError(
            f"{len(empty)} class folder(s) of {split} have no images: {', '.join(empty[:5])}; "
            f"image files end in {', '.join(EXTENSIONS)}"
        )
    labels = np.repeat(np.arange(len(names)), [len(files) for files in images])
    return FolderSource(list(itertools.chain(*images)), labels)


def _images(folder: pathlib.Path) -> list[str]:
    images = []

    def refuse(error: OSError) -> None:
        raise error

    for base, directories, names in os.walk(folder, onerror=refuse):
        directories.sort()
        images += [
            os.path.join(base, name)
            for name in sorted(names)
            if name.lower().endswith(EXTENSIONS) and name[0] != "."
        ]
    return images
