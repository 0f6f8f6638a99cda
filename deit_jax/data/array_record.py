"""ArrayRecord files by record number."""

import contextlib
import importlib
import threading
from typing import Any

from deit_jax.errors import ConfigError


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
        with self._lock:
            if shard not in self._readers:
                # Reading ahead is for sequential use; here it only costs memory.
                self._readers[shard] = self._module.ArrayRecordReader(
                    self._paths[shard], options="readahead_buffer_size:0"
                )
            reader = self._readers[shard]
        return reader.read([record])[0]

    @staticmethod
    def read_whole(path: str) -> list[bytes]:
        """All payloads of one file."""
        with contextlib.closing(_array_record_module().ArrayRecordReader(path)) as reader:
            return reader.read_all()

    def __del__(self):
        for reader in getattr(self, "_readers", {}).values():
            reader.close()


def _array_record_module() -> Any:
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise ConfigError(
            f"reading ArrayRecord files needs array_record ({error}): `pip install array_record`"
        ) from error


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files by `count`, as far as the system lets it."""
    # Not on Windows, where array_record is not either.
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
