"""Payloads by (file, record) from ArrayRecord files, and whole files at a time for object stores.

The reader of TFRecord files with positional reads is `tfrecord.RecordFiles`.
"""

import collections
import concurrent.futures
import threading
from collections.abc import Iterable

from deit_jax.data import tfrecord
from deit_jax.errors import ConfigError


def _array_record_module():
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ConfigError(
            f"reading ArrayRecord files needs array_record ({error}): `pip install array_record`"
        ) from error
    return array_record_module


def _allow_open_files(count: int) -> None:
    """Raise this process's limit of open files by `count`, as far as the system lets it."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class ArrayRecordFiles:
    """ArrayRecord files, opened when first read."""

    def __init__(self, paths: list[str]):
        self._paths = paths
        self._readers: dict[int, object] = {}
        self._lock = threading.Lock()
        self._module = _array_record_module()
        _allow_open_files(len(paths))

    def read(self, shard: int, record: int) -> bytes:
        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                if shard not in self._readers:
                    # Reading ahead is for sequential use; here it only costs memory.
                    self._readers[shard] = self._module.ArrayRecordReader(
                        self._paths[shard], options="readahead_buffer_size:0"
                    )
                reader = self._readers[shard]
        return reader.read([record])[0]

    def hint(self, shards: Iterable[int]) -> None:
        """Nothing: positional reads need no preparation."""

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def __del__(self):
        self.close() if hasattr(self, "_readers") else None


def read_whole(path: str, file_format: str) -> list[bytes]:
    """All payloads of one file, TFRecord (local or any URL that epath reads) or ArrayRecord."""
    if file_format == "array_record":
        reader = _array_record_module().ArrayRecordReader(path)
        try:
            return reader.read_all()
        finally:
            reader.close()
    from etils import epath

    return tfrecord.split_records(epath.Path(path).read_bytes(), path)


class WholeFiles:
    """Files read whole and kept, the most recently used `keep` of them.

    Each file is read once however many threads ask for it; `hint` starts reading ahead.
    """

    def __init__(self, paths: list[str], file_format: str, *, keep: int):
        if file_format not in ("tfrecord", "array_record"):
            raise ConfigError(f"files of format {file_format!r} are not supported")
        self._paths = paths
        self._format = file_format
        self._keep = keep
        self._lock = threading.Lock()
        self._files: collections.OrderedDict = collections.OrderedDict()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def _future(self, shard: int) -> tuple[concurrent.futures.Future, bool]:
        """The content of a file, now or later, and whether the caller is to read it."""
        with self._lock:
            known = shard in self._files
            if not known:
                self._files[shard] = concurrent.futures.Future()
                while len(self._files) > self._keep:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return self._files[shard], not known

    def _load(self, shard: int, future: concurrent.futures.Future) -> None:
        try:
            future.set_result(read_whole(self._paths[shard], self._format))
        except BaseException as error:  # noqa: BLE001 - raised where the records are asked for
            with self._lock:
                self._files.pop(shard, None)
            future.set_exception(error)

    def read(self, shard: int, record: int) -> bytes:
        future, mine = self._future(shard)
        if mine:
            self._load(shard, future)
        return future.result()[record]

    def hint(self, shards: Iterable[int]) -> None:
        """Start reading these files on a thread, those that are not there yet."""
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(1, "read-window-ahead")
        for shard in shards:
            future, mine = self._future(shard)
            if mine:
                self._pool.submit(self._load, shard, future)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._files.clear()
