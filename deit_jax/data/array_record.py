"""ArrayRecord files by record number; the format's own checksums detect damage."""

import contextlib
import importlib
import threading
from typing import Any

from deit_jax import storage
from deit_jax.data.source import CorruptImage
from deit_jax.errors import ConfigError

_DAMAGE = (RuntimeError, ValueError, IndexError, OSError)


class ArrayRecordFiles:
    """Payloads by (file, record) from ArrayRecord files, each opened when first read."""

    # Not known without opening every file.
    lengths = None

    def __init__(self, paths: list[str]):
        self._paths = paths
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._module = _array_record_module()
        _allow_open_files(len(paths))

    def read(self, shard: int, record: int) -> bytes:
        """A payload; raises CorruptImage where it or the file is damaged.

        A damaged record takes those of its group along: tfds writes groups of one record.
        """
        try:
            with self._lock:
                if shard not in self._readers:
                    # Reading ahead is for sequential use; here it only costs memory.
                    self._readers[shard] = self._module.ArrayRecordReader(
                        self._paths[shard], options="readahead_buffer_size:0"
                    )
                reader = self._readers[shard]
            return reader.read([record])[0]
        except _DAMAGE as error:
            raise _damaged(error) from error

    @staticmethod
    def read_whole(path: str) -> list[bytes | CorruptImage]:
        """All payloads of one file."""
        module = _array_record_module()
        with storage.local_copy(storage.path(path)) as file:
            try:
                reader = module.ArrayRecordReader(str(file))
            except _DAMAGE as error:
                message = f"{path}: {_damaged(error)}; prepare the data set again"
                raise ConfigError(message) from error
            try:
                return reader.read_all()
            except _DAMAGE:
                return [_read_one(reader, record) for record in range(reader.num_records())]
            finally:
                _close(reader)

    def __del__(self):
        for reader in getattr(self, "_readers", {}).values():
            _close(reader)


def _close(reader: Any) -> None:
    # The reader raises the error of an earlier damaged record once more.
    with contextlib.suppress(*_DAMAGE):
        reader.close()


def _read_one(reader: Any, record: int) -> bytes | CorruptImage:
    try:
        return reader.read([record])[0]
    except _DAMAGE as error:
        return _damaged(error)


def _damaged(error: Exception) -> CorruptImage:
    # Riegeli's messages go on with positions of every layer of the file.
    return CorruptImage(f"damaged: {str(error).partition(';')[0][:120]}")


def _array_record_module() -> Any:
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise ConfigError(
            f"ArrayRecord files need array_record ({error}): `pip install 'deit_jax[data]'`"
        ) from error


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files by `count`, as far as the system lets it."""
    # Not on Windows, where array_record is not either.
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
