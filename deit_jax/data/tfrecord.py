"""TFRecord files by record number: an offset index and positional reads.

tf.data reads these files only from front to back. An index of where each record starts
(one pass over the 12-byte headers, stored in the user's cache) makes any order cost the same.
The checksums of the format are not verified: damage to an image is found by decoding it.
"""

import concurrent.futures
import functools
import hashlib
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from deit_jax.errors import ConfigError

_HEADER_BYTES, _FOOTER_BYTES = 12, 4
_MOST_OPEN_FILES = 128
_LOG = logging.getLogger(__name__)


def scan_offsets(path: str) -> np.ndarray:
    """Start and length in bytes of each record's payload, int64 [n, 2].

    Raises:
        ConfigError: the chain of lengths does not end at the end of the file.
    """
    with open(path, "rb", buffering=0) as file:
        read = functools.partial(os.pread, file.fileno())
        spans = list(_spans(read, os.path.getsize(path), path))
    return np.array(spans, np.int64).reshape(-1, 2)


def split_records(content: bytes, path: str) -> list[bytes]:
    """Payloads of a whole TFRecord file that is already in memory; raises as `scan_offsets`."""
    read = lambda count, position: content[position : position + count]
    return [read(length, start) for start, length in _spans(read, len(content), path)]


def _spans(read: Callable[[int, int], bytes], size: int, path: str) -> Iterator[tuple[int, int]]:
    """(start, length) of each payload; `read(count, position)` returns bytes of the file."""
    position = 0
    while position < size:
        header = read(_HEADER_BYTES, position)
        length = int.from_bytes(header[:8], "little") if len(header) == _HEADER_BYTES else size
        end = position + _HEADER_BYTES + length + _FOOTER_BYTES
        if end > size:
            raise ConfigError(
                f"{path} is damaged or cut short: the record at byte {position} "
                f"would end at byte {end} of {size}; prepare the data set again"
            )
        yield position + _HEADER_BYTES, length
        position = end


def offset_index(paths: list[str]) -> list[np.ndarray]:
    """`scan_offsets` of each file, from the cache when the files are unchanged.

    The cache is $XDG_CACHE_HOME/deit_jax (default ~/.cache/deit_jax), keyed by the paths,
    sizes and modification times; where it cannot be written the scan is repeated each time.
    """
    cache = _cache_file(paths)
    try:
        with np.load(cache) as stored:
            return [stored[f"arr_{i}"] for i in range(len(paths))]
    except (OSError, ValueError, KeyError, EOFError):
        pass
    _LOG.info("indexing %d TFRecord files, once", len(paths))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        index = list(pool.map(scan_offsets, paths))
    _write_cache(cache, index)
    return index


def _cache_file(paths: list[str]) -> pathlib.Path:
    digest = hashlib.sha256()
    for path in paths:
        stat = os.stat(path)
        digest.update(f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(root) / "deit_jax" / "tfrecord_index" / f"{digest.hexdigest()[:32]}.npz"


def _write_cache(cache: pathlib.Path, index: list[np.ndarray]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".npz", delete=False) as file:
            np.savez(file, *index)
        # Renamed, so that another process never reads half of an index.
        os.replace(file.name, cache)
    except OSError:
        pass


class TFRecordFiles:
    """Payloads by (file, record) from TFRecord files."""

    def __init__(self, paths: list[str]):
        self._paths = paths
        self._index = offset_index(paths)
        self.lengths = tuple(map(len, self._index))
        stay_open = len(paths) <= _MOST_OPEN_FILES
        # pread has no file position, so one descriptor serves all threads. ImageNet's 1,024
        # files are more than many systems let a process open: opened for each read.
        self._files = [os.open(path, os.O_RDONLY) for path in (paths if stay_open else [])]

    def read(self, shard: int, record: int) -> bytes:
        start, length = self._index[shard][record].tolist()
        if self._files:
            return os.pread(self._files[shard], length, start)
        file = os.open(self._paths[shard], os.O_RDONLY)
        try:
            return os.pread(file, length, start)
        finally:
            os.close(file)

    @staticmethod
    def read_whole(path: str) -> list[bytes]:
        """All payloads of one file, local or at any URL that epath reads."""
        from etils import epath

        return split_records(epath.Path(path).read_bytes(), path)

    def __del__(self):
        for file in getattr(self, "_files", ()):
            os.close(file)
