"""WebDataset shards: tar files of `KEY.jpg` with `KEY.cls` or `KEY.json`, by record number.

An index of where each image begins, with its label, is made by one pass over the headers and
stored. A tar file has no checksums but those of its headers: a damaged photo is found by
decoding it, if at all.
"""

import json
import posixpath
import tarfile
from typing import IO

import numpy as np

from deit_jax import storage
from deit_jax.data import formats, shards
from deit_jax.data._tensorflow import require_tensorflow
from deit_jax.data.local_files import index_once, open_files
from deit_jax.data.source import CorruptImage, Data, Record, Source, check_num_classes
from deit_jax.errors import ConfigError

_HEADER_BYTES = 512
_IMAGES = {extension[1:] for extension in formats.EXTENSIONS}
_NO_LABEL = -1


class TarSource(Source):
    """Images of tar files, in the order of the files and in them.

    Args:
        paths: of the files.
        exif_orientation: see `Source`.

    Attributes:
        num_classes: a record whose label is outside 0..num_classes-1 counts as corrupt.
    """

    def __init__(self, paths: list[str], exif_orientation: bool):
        self._paths = paths
        index = index_once("webdataset", paths, scan_tar)
        self._ends = np.cumsum([len(rows) for rows in index])
        self._rows = np.concatenate(index)
        if not len(self._rows):
            raise ConfigError(f"the {len(paths)} files from {paths[0]} on have no images")
        self._files = open_files(paths)
        self.labels = self._rows[:, 2]
        self.num_classes = int(self.labels.max()) + 1
        self.exif_orientation = exif_orientation

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        labels = self.labels[np.asarray(indices)]
        wrong = (labels < 0) | (labels >= self.num_classes)
        images = [
            self._read(index, bad) for index, bad in zip(indices, wrong.tolist(), strict=True)
        ]
        return images, np.where(wrong, 0, labels)

    def _read(self, index: int, wrong_label: bool) -> Record:
        start, length, label = self._rows[index].tolist()
        if label == _NO_LABEL:
            return CorruptImage("it has no .cls or .json with a number for the label")
        if wrong_label:
            return CorruptImage(f"label {label} is outside the {self.num_classes} classes")
        try:
            return self._files.read(self._shard(index), start, length)
        except CorruptImage as error:
            return error

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def record_name(self, index: int) -> str:
        shard = self._shard(index)
        start = int(self._rows[index, 0])
        try:
            header = self._files.read(shard, start - _HEADER_BYTES, _HEADER_BYTES)
        except CorruptImage:
            header = b"?"
        name = header[:100].split(b"\0")[0].decode(errors="replace")
        return f"{self._paths[shard]}: {name} (byte {start})"


def open_tar(
    *,
    path: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    num_classes: int | None = None,
    classes: str | None = None,
    exif_orientation: bool = False,
) -> Data:
    """WebDataset shards: tar files of KEY.jpg with KEY.cls or KEY.json (its `label`).

    Args:
        path: the folder of the shards; None: patterns say where they are.
        train_split, eval_split: a brace pattern ('train-{0000..1023}.tar'), a glob, or a
            name: of a folder of shards, or a part of their names. None: train, and the
            first of val, validation, valid, test that has shards.
        num_classes: K; None: those in `classes`, or what the largest label of training needs.
        classes: a text file with the name of a class on each line; None: classes.txt in
            `path`, if it is there.
        exif_orientation: images are turned as their EXIF orientation says.

    Raises:
        ConfigError: a split without shards, a shard that is damaged.
    """
    require_tensorflow()
    check_num_classes(num_classes)
    found = shards.find_splits(path, train_split, eval_split, ".tar")
    train, evaluation = (TarSource(paths, exif_orientation) for paths in found)
    names = _class_names(path, classes)
    if num_classes is not None and names and len(names) != num_classes:
        raise ConfigError(f"num_classes is {num_classes}, but there are {len(names)} names")
    count = num_classes or (len(names) if names else train.num_classes)
    train.num_classes = evaluation.num_classes = count
    return Data(
        train=train,
        eval=evaluation,
        num_classes=count,
        class_names=names,
        description=f"{len(found[0])} + {len(found[1])} tar shards ({found[0][0]}, ...): train "
        f"{len(train)}, evaluation {len(evaluation)} images, {count} classes",
    )


def _class_names(path: str | None, classes: str | None) -> tuple[str, ...] | None:
    file = storage.path(classes or posixpath.join(path or "", "classes.txt")).expanduser()
    try:
        lines = file.read_bytes().decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        if classes is None and isinstance(error, FileNotFoundError):
            return None
        raise ConfigError(f"classes {file} cannot be read: {error}") from error
    return tuple(line.strip() for line in lines if line.strip())


def scan_tar(path: str) -> np.ndarray:
    """Start, length in bytes and label (-1 without one) of each image, int64 [n, 3].

    Raises:
        ConfigError: the file is damaged or is not a tar file.
    """
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with (
            storage.path(path).open("rb") as opened,
            tarfile.open(fileobj=opened, mode="r:") as tar,
        ):
            for member in tar:
                folder, name = posixpath.split(member.name)
                key, _, extension = name.partition(".")
                key, extension = posixpath.join(folder, key), extension.lower()
                if not member.isfile() or not key:
                    continue
                if extension in _IMAGES:
                    images[key] = member.offset_data, member.size
                elif extension in ("cls", "json"):
                    label = _label(extension, _bytes_at(opened, member.offset_data, member.size))
                    # A .cls says nothing but the label, a .json may say other things.
                    labels[key] = labels.get(key, label) if extension == "json" else label
            # tarfile takes a damaged header for the end.
            if any(_bytes_at(opened, tar.offset, _HEADER_BYTES).ljust(1, b"?")):
                raise tarfile.ReadError(f"no header and no end at byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path} is damaged, cut short or not a tar file: {error}") from error
    rows = [(*span, labels.get(key, _NO_LABEL)) for key, span in images.items()]
    return np.array(rows, np.int64).reshape(-1, 3)


def _bytes_at(file: IO[bytes], start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _label(extension: str, content: bytes) -> int:
    try:
        label = json.loads(content)["label"] if extension == "json" else content
        return max(int(label), _NO_LABEL)
    except (ValueError, TypeError, KeyError, RecursionError):
        return _NO_LABEL
