"""Parquet files as Hugging Face writes them (`ILSVRC/imagenet-1k`), by record number.

The unit of reading is a row group: its images are one compressed page or few, none of which
can be entered in the middle, so that one image costs its group. Groups that were read stay in
memory, as many as fit; with `window_shards` the order goes from one window of groups to the
next and each is read once an epoch.
"""

import contextlib
import functools
import importlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from deit_jax import storage
from deit_jax.data import readers, shards
from deit_jax.data._tensorflow import require_tensorflow
from deit_jax.data.local_files import index_once
from deit_jax.data.source import CorruptImage, Data, Record, Source, check_num_classes, check_window
from deit_jax.errors import ConfigError, unknown

# Bytes of row groups in memory without windows.
_MEMORY = 1 << 29


class ParquetSource(Source):
    """Rows of parquet files, in the order of the files.

    Args:
        paths: of the files.
        keys: columns, image and label.
        num_classes: a record whose label is outside 0..num_classes-1 counts as corrupt; None:
            what the largest label needs.
        window_shards: see `Source`; of row groups here.
        exif_orientation: see `Source`.
    """

    def __init__(
        self,
        paths: list[str],
        keys: tuple[str, str],
        num_classes: int | None,
        window_shards: int | None,
        exif_orientation: bool,
    ):
        image_key, label_key = keys
        scans = functools.partial(scan_groups, image_key), functools.partial(scan_labels, label_key)
        groups, labels = (
            index_once(f"parquet {key}", paths, scan) for key, scan in zip(keys, scans, strict=True)
        )
        self.labels = np.concatenate(labels)[:, 0]
        table = np.concatenate(groups)
        self.shard_lengths = tuple(table[:, 0].tolist())
        self.group_bytes = int(table[:, 1].mean()) if len(table) else 0
        self.window_shards = window_shards
        capacity = 2 * (window_shards or max(4, _MEMORY // 2 // max(self.group_bytes, 1)))
        places = [
            (path, group, rows)
            for path, found in zip(paths, groups, strict=True)
            for group, rows in enumerate(found[:, 0].tolist())
        ]
        read = functools.partial(read_group, image_key)
        self._groups = readers.WholeFiles(places, read, capacity=capacity)
        self._places = places
        self._ends = np.cumsum(self.shard_lengths)
        self._first_group = {path: i for i, (path, group, _) in enumerate(places) if group == 0}
        self.num_classes = num_classes or int(self.labels.max(initial=0)) + 1
        self.exif_orientation = exif_orientation

    def __len__(self) -> int:
        return len(self.labels)

    def _locate(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, int(index) - int(self._ends[group]) + self.shard_lengths[group]

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        labels = self.labels[np.asarray(indices)]
        wrong = (labels < 0) | (labels >= self.num_classes)
        images: list[Record] = []
        for index, label, bad in zip(indices, labels.tolist(), wrong.tolist(), strict=True):
            try:
                if bad:
                    raise CorruptImage(f"label {label} is outside the {self.num_classes} classes")
                images.append(self._groups.read(*self._locate(index)))
            except CorruptImage as error:
                images.append(error)
        return images, np.where(wrong, 0, labels)

    def hint(self, indices: np.ndarray) -> None:
        self._groups.hint(np.unique(np.searchsorted(self._ends, indices, side="right")).tolist())

    def record_name(self, index: int) -> str:
        group, row = self._locate(index)
        path = self._places[group][0]
        first = self._first_group[path]
        return f"{path} row {row + sum(self.shard_lengths[first:group])}"


def open_parquet(
    *,
    path: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
    num_classes: int | None = None,
    window_shards: int | None = None,
    exif_orientation: bool = False,
) -> Data:
    """Parquet files as Hugging Face writes them: image (struct of bytes and path) and label.

    Args:
        path: the folder of the files, or of the repository; None: patterns say where they are.
        train_split, eval_split: a brace pattern, a glob, or a name: of a folder of files, or
            a part of their names. None: train, and the first of val, validation, valid, test
            that has files.
        image_key, label_key: columns.
        num_classes: K; None: the names in the files, or what the largest label needs.
        window_shards: read that many row groups at a time and shuffle inside them; None: full
            shuffle, where each image costs reading its row group unless all fit in memory.
        exif_orientation: images are turned as their EXIF orientation says.

    Raises:
        ConfigError: pyarrow is not installed, a split without files, a file that is damaged or
            lacks a column.
    """
    require_tensorflow()
    _parquet()
    check_window(window_shards)
    check_num_classes(num_classes)
    found = shards.find_splits(path, train_split, eval_split, ".parquet")
    keys = image_key, label_key
    names = _class_names(found[0][0], label_key)
    options = window_shards, exif_orientation
    known = num_classes or (len(names) if names else None)
    train = ParquetSource(found[0], keys, known, *options)
    if names and len(names) != train.num_classes:
        raise ConfigError(f"num_classes is {num_classes}, but the files name {len(names)} classes")
    evaluation = ParquetSource(found[1], keys, train.num_classes, *options)
    for source, paths in zip((train, evaluation), found, strict=True):
        if not len(source):
            raise ConfigError(f"the {len(paths)} files from {paths[0]} on have no rows")
    return Data(
        train=train,
        eval=evaluation,
        num_classes=train.num_classes,
        class_names=names,
        description=f"{len(found[0])} + {len(found[1])} parquet files ({found[0][0]}, ...): train "
        f"{len(train)}, evaluation {len(evaluation)} images, {train.num_classes} classes",
        notes=_notes(train),
    )


def _notes(train: ParquetSource) -> tuple[str, ...]:
    groups = len(train.shard_lengths)
    if train.window_shards or train.group_bytes * groups <= _MEMORY:
        return ()
    return (
        f"full shuffle of parquet: each image costs reading its row group of "
        f"{len(train) // groups:,} images, {train.group_bytes / 1e6:.1f} MB; window_shards=64, "
        "say, shuffles inside 64 groups at a time and reads each once an epoch",
    )


def _parquet() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"reading parquet files needs pyarrow ({error}): pip install 'deit_jax[parquet]'"
        ) from error


@functools.lru_cache(maxsize=4096)
def _metadata(path: str, mtime: float) -> Any:
    """The footer of a file; raises ConfigError where it is damaged."""
    try:
        with storage.path(path).open("rb") as file:
            return _parquet().read_metadata(file)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path} is damaged or not a parquet file: {reason}") from error


def _footer(path: str) -> Any:
    return _metadata(path, storage.path(path).stat().st_mtime)


def scan_groups(key: str, path: str) -> np.ndarray:
    """Rows and uncompressed bytes of the images of each row group, int64 [groups, 2]."""
    footer = _footer(path)
    schema = footer.schema.to_arrow_schema()
    if key not in schema.names:
        raise unknown(f"column of {path}", key, schema.names)
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    sizes = [sum(g.column(c).total_uncompressed_size for c in range(g.num_columns)) for g in groups]
    rows = [(g.num_rows, size) for g, size in zip(groups, sizes, strict=True)]
    return np.array(rows, np.int64).reshape(-1, 2)


def scan_labels(key: str, path: str) -> np.ndarray:
    """The labels of a file, int64 [n, 1], -1 for none."""
    names = _footer(path).schema.to_arrow_schema().names
    if key not in names:
        raise unknown(f"column of {path}", key, names)
    try:
        with _opened(path) as file:
            column = file.read(columns=[key], use_threads=False).column(key)
        return column.fill_null(-1).to_numpy().astype(np.int64)[:, None]
    except (ValueError, TypeError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path} is damaged: its labels cannot be read ({reason})") from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    # Files with checksums of their pages are checked; Hugging Face writes none.
    options = {"metadata": _footer(path), "page_checksum_verification": True}
    if storage.is_remote(path):
        with storage.path(path).open("rb") as file:
            yield _parquet().ParquetFile(file, **options)
    else:
        yield _parquet().ParquetFile(path, memory_map=True, **options)


class _Images(Sequence):
    """The images of a row group, copied one by one."""

    def __init__(self, values: Any):
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, row):
        value = self._values[row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        return value if isinstance(value, bytes) else CorruptImage("the row has no image bytes")


def read_group(key: str, place: tuple[str, int, int]) -> Sequence[bytes | CorruptImage]:
    """Encoded images of (file, row group, its rows); all are corrupt where it is damaged."""
    path, group, rows = place
    try:
        with _opened(path) as file:
            table = file.read_row_group(group, columns=[key], use_threads=False)
        return _Images(table.column(key))
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return [CorruptImage(f"row group {group} is damaged: {reason}")] * rows


def _class_names(path: str, key: str) -> tuple[str, ...] | None:
    """Those in the metadata that Hugging Face adds to the schema."""
    metadata = _footer(path).schema.to_arrow_schema().metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[key]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
