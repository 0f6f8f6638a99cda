"""Bytes of files at a position, from any thread, and an index of files that is made once."""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import tempfile
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from deit_jax import storage
from deit_jax.data.source import CorruptImage

_MOST_OPEN_FILES = 128
_LOG = logging.getLogger(__name__)


def open_files(paths: Sequence[str]) -> "LocalFiles | RemoteFiles":
    """Bytes by (file, position) of files in one place, on this machine or in a store."""
    return RemoteFiles(paths) if storage.is_remote(paths[0]) else LocalFiles(paths)


class RemoteFiles:
    """Bytes by (file, position) from a store, each one request."""

    def __init__(self, paths: Sequence[str]):
        self._paths = [storage.path(path) for path in paths]

    def read(self, file: int, start: int, length: int) -> bytes:
        """As `LocalFiles.read`."""
        try:
            return _whole(storage.read_range(self._paths[file], start, length), length)
        except OSError as error:
            raise CorruptImage(error.strerror or str(error)) from error


class LocalFiles:
    """Bytes by (file, position)."""

    def __init__(self, paths: Sequence[str]):
        self._paths = paths
        stay_open = len(paths) <= _MOST_OPEN_FILES
        # pread has no file position, so one descriptor serves all threads. ImageNet's 1,024
        # files are more than many systems let a process open: opened for each read.
        self._files = [os.open(path, os.O_RDONLY) for path in (paths if stay_open else [])]
        weakref.finalize(self, _close, self._files)

    def read(self, file: int, start: int, length: int) -> bytes:
        """`length` bytes from `start`.

        Raises:
            CorruptImage: they cannot be read, or the file ends before them.
        """
        try:
            if self._files:
                content = os.pread(self._files[file], length, start)
            else:
                with open(self._paths[file], "rb", buffering=0) as opened:
                    content = os.pread(opened.fileno(), length, start)
        except OSError as error:
            raise CorruptImage(error.strerror or str(error)) from error
        return _whole(content, length)


def _whole(content: bytes, length: int) -> bytes:
    if len(content) != length:
        raise CorruptImage("the file ends before the end of the record")
    return content


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def index_once(
    kind: str, paths: Sequence[str], scan: Callable[[str], np.ndarray]
) -> list[np.ndarray]:
    """`scan(path)`, int64 [n, k], of each file, from the cache when the files are unchanged.

    The cache is $XDG_CACHE_HOME/deit_jax (default ~/.cache/deit_jax), keyed by `kind`, the
    paths, sizes and modification times; where it cannot be written every start scans again.
    """
    cache = _cache_file(kind, paths)
    try:
        with np.load(cache) as stored:
            # One array for all files: each array of an .npz file takes a while to open.
            return np.split(stored["rows"], np.cumsum(stored["counts"])[:-1])
    except (OSError, ValueError, KeyError, EOFError):
        pass
    _LOG.info("indexing %d files (%s), once", len(paths), kind)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        index = list(pool.map(scan, paths))
    _write_cache(cache, index)
    return index


def _cache_file(kind: str, paths: Sequence[str]) -> pathlib.Path:
    digest = hashlib.sha256(kind.encode())
    # Stores answer late; several requests at a time.
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for fact in pool.map(_fact, paths):
            digest.update(fact.encode())
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(root) / "deit_jax" / "index" / f"{digest.hexdigest()[:32]}.npz"


def _fact(path: str) -> str:
    """What tells one state of a file from another."""
    if storage.is_remote(path):
        stat = storage.path(path).stat()
        return f"{path} {stat.st_size} {stat.st_mtime}\n"
    stat = os.stat(path)
    return f"{os.path.abspath(path)} {stat.st_size} {stat.st_mtime_ns}\n"


def _write_cache(cache: pathlib.Path, index: list[np.ndarray]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".npz", delete=False) as file:
            np.savez(file, rows=np.concatenate(index), counts=np.array([len(i) for i in index]))
        # Renamed, so that another process never reads half of an index.
        os.replace(file.name, cache)
    except OSError:
        pass
