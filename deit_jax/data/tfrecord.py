"""TFRecord files by record number: an offset index, positional reads, a small Example parser.

tf.data reads these files only from front to back. An index of where each record starts
(one pass over the 12-byte headers, kept in the user's cache) makes any order cost the same.
The checksums of the format are not verified: a damaged image shows at decoding.
"""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import struct
import tempfile
from collections.abc import Iterable

import numpy as np

from deit_jax.errors import ConfigError

_HEADER = struct.Struct("<Q")
_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_MOST_OPEN_FILES = 128
_LOG = logging.getLogger(__name__)


def scan_offsets(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Start and length in bytes of each record's payload, two int64 [n].

    Raises:
        ConfigError: the chain of lengths does not end at the end of the file.
    """
    starts, lengths = [], []
    size = os.path.getsize(path)
    position = 0
    with open(path, "rb", buffering=0) as file:
        while position < size:
            header = os.pread(file.fileno(), _HEADER_BYTES, position)
            length = _HEADER.unpack(header[:8])[0] if len(header) == _HEADER_BYTES else size
            end = position + _HEADER_BYTES + length + _FOOTER_BYTES
            if end > size:
                raise ConfigError(
                    f"{path} is damaged or cut short: the record at byte {position} "
                    f"would end at byte {end} of {size}; prepare the data set again"
                )
            starts.append(position + _HEADER_BYTES)
            lengths.append(length)
            position = end
    return np.array(starts, np.int64), np.array(lengths, np.int64)


def offset_index(paths: list[str], *, threads: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    """`scan_offsets` of each file, from the cache when the files are unchanged.

    The cache is $XDG_CACHE_HOME/deit_jax (default ~/.cache/deit_jax), keyed by the paths,
    sizes and modification times; where it cannot be written the scan is repeated each time.
    """
    cache = _cache_file(paths)
    try:
        with np.load(cache) as stored:
            return [(stored[f"start{i}"], stored[f"length{i}"]) for i in range(len(paths))]
    except (OSError, ValueError, KeyError, EOFError):
        pass
    _LOG.info("indexing %d TFRecord files, once", len(paths))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        index = list(pool.map(scan_offsets, paths))
    _write_cache(cache, index)
    return index


def _cache_file(paths: list[str]) -> pathlib.Path:
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(root) / "deit_jax" / "tfrecord_index" / f"{digest.hexdigest()[:32]}.npz"


def _write_cache(cache: pathlib.Path, index: list[tuple[np.ndarray, np.ndarray]]) -> None:
    content = {f"start{i}": start for i, (start, _) in enumerate(index)}
    content |= {f"length{i}": length for i, (_, length) in enumerate(index)}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **content)
        # Renamed, so that another process never reads half of an index.
        os.replace(file.name, cache)
    except OSError:
        pass


class RecordFiles:
    """Payloads of the records of several TFRecord files, numbered through."""

    def __init__(self, paths: list[str]):
        self.paths = paths
        self._index = offset_index(paths)
        self.lengths = tuple(len(start) for start, _ in self._index)
        # pread keeps no file position, so one descriptor serves all threads. ImageNet's 1,024
        # files would use up what many systems let a process open: opened for each read.
        self._files = [os.open(path, os.O_RDONLY) for path in paths[: self._kept_open(paths)]]

    @staticmethod
    def _kept_open(paths: list[str]) -> int:
        return len(paths) if len(paths) <= _MOST_OPEN_FILES else 0

    def read(self, shard: int, record: int) -> bytes:
        starts, lengths = self._index[shard]
        start, length = int(starts[record]), int(lengths[record])
        if self._files:
            return os.pread(self._files[shard], length, start)
        file = os.open(self.paths[shard], os.O_RDONLY)
        try:
            return os.pread(file, length, start)
        finally:
            os.close(file)

    def hint(self, shards: Iterable[int]) -> None:
        """Nothing: positional reads need no preparation."""

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def __del__(self):
        if hasattr(self, "_files"):
            self.close()


def split_records(content: bytes, path: str) -> list[bytes]:
    """Payloads of a whole TFRecord file that is already in memory."""
    payloads = []
    position = 0
    while position < len(content):
        (length,) = _HEADER.unpack_from(content, position)
        start = position + _HEADER_BYTES
        position = start + length + _FOOTER_BYTES
        if position > len(content):
            raise ConfigError(f"{path} is damaged or cut short; prepare the data set again")
        payloads.append(content[start : start + length])
    return payloads


def parse_example(payload: bytes, image_key: str, label_key: str) -> tuple[bytes, int]:
    """Image bytes and label of a serialised tf.train.Example.

    Reads the protocol buffer wire format directly: no TensorFlow, and a tenth of the cost
    of an eager `tf.io.parse_single_example`.

    Raises:
        ValueError: a feature is missing or the payload is no Example.
    """
    image = label = None
    try:
        for _, features in _fields(payload):
            for _, entry in _fields(features):
                key, value = (v for _, v in _fields(entry))
                key = bytes(key).decode()
                if key == image_key:
                    image = bytes(_first(_first(value)))
                elif key == label_key:
                    label = _first_int(_first(value))
    except (IndexError, TypeError, StopIteration, ValueError) as error:
        raise ValueError("the record is no tf.train.Example") from error
    if image is None or label is None:
        raise ValueError(f"the record lacks feature {image_key!r} or {label_key!r}")
    return image, label


def parse_integers(payload: bytes, wanted: str) -> np.ndarray:
    """All values of the integer feature `wanted` of an Example, int64 [k]; k may be 0.

    Raises:
        ValueError: the feature is missing or the payload is no Example.
    """
    try:
        for _, features in _fields(payload):
            for _, entry in _fields(features):
                key, value = (v for _, v in _fields(entry))
                if bytes(key).decode() == wanted:
                    # An empty list is written as a feature without content.
                    lists = [items for _, items in _fields(value)]
                    return np.array([i for items in lists for i in _integers(items)], np.int64)
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError("the record is no tf.train.Example") from error
    raise ValueError(f"the record lacks feature {wanted!r}")


def _integers(int64_list):
    """Values of an Int64List, packed or not, two's complement."""
    for _, value in _fields(int64_list):
        values, position = [value] if isinstance(value, int) else [], 0
        while not isinstance(value, int) and position < len(value):
            one, position = _varint(value, position)
            values.append(one)
        yield from (one - (1 << 64) if one >= 1 << 63 else one for one in values)


def _fields(data):
    """(field number, value) pairs of a message: ints for varints, views for the rest."""
    view = memoryview(data)
    position = 0
    while position < len(view):
        tag, position = _varint(view, position)
        if tag & 7 == 2:
            length, position = _varint(view, position)
            if position + length > len(view):
                raise IndexError("field runs over the end")
            yield tag >> 3, view[position : position + length]
            position += length
        elif tag & 7 == 0:
            value, position = _varint(view, position)
            yield tag >> 3, value
        else:
            raise IndexError(f"unexpected wire type {tag & 7}")


def _first(message):
    return next(value for _, value in _fields(message))


def _first_int(int64_list) -> int:
    """First value of an Int64List, packed (as written today) or not, two's complement."""
    return next(_integers(int64_list))


def _varint(view, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
