"""The file formats of prepared data sets, read by record or, from object stores, whole files."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from deit_jax.data.array_record import ArrayRecordFiles
from deit_jax.data.source import CorruptImage
from deit_jax.data.tfrecord import TFRecordFiles
from deit_jax.errors import ConfigError

# A class with `__init__(paths)`, `read(shard, record)` -> payload bytes, safe to call from
# several threads, `read_whole(path)` -> all payloads of a file, and `lengths`, the number of
# records in each file or None. What is damaged by its checksum is raised as, or is, a
# `CorruptImage`.
FILE_FORMATS = {"tfrecord": TFRecordFiles, "array_record": ArrayRecordFiles}


def open_files(file_format: str, paths: list[str], window_shards: int | None):
    """A reader of these files: by record, or `window_shards` whole files at a time.

    Raises:
        ConfigError: a format that is not in `FILE_FORMATS`, files in an object store that
            would be read by record.
    """
    if file_format not in FILE_FORMATS:
        raise ConfigError(
            f"files of format {file_format!r} cannot be read (known: {', '.join(FILE_FORMATS)}); "
            "prepare the data set as tfrecord: tfds build NAME --file_format=tfrecord"
        )
    files = FILE_FORMATS[file_format]
    if window_shards is not None:
        # Two windows: the one in use and the one that is read ahead.
        return WholeFiles(paths, files.read_whole, capacity=2 * window_shards)
    if "://" in paths[0]:
        raise ConfigError(
            f"{paths[0]} is in an object store, where every record would cost a round trip; "
            "set window_shards (8, say, to read 8 whole files at a time), or copy or mount the data"
        )
    return files(paths)


class WholeFiles:
    """Payloads by (file, record) from whole files in memory, the `capacity` most recently used.

    Each file is read once however many threads need it; `hint` starts reading ahead.
    """

    lengths = None

    def __init__(
        self,
        paths: Sequence[Any],
        read_whole: Callable[[Any], Sequence[bytes | CorruptImage]],
        *,
        capacity: int,
    ):
        self._paths = paths
        self._read_whole = read_whole
        self._capacity = capacity
        self._lock = threading.Lock()
        self._files: collections.OrderedDict = collections.OrderedDict()
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "read-window-ahead")

    def _future(self, shard: int) -> tuple[concurrent.futures.Future, bool]:
        """The content of a file, now or later, and whether the caller is to read it."""
        with self._lock:
            known = shard in self._files
            if not known:
                self._files[shard] = concurrent.futures.Future()
                while len(self._files) > self._capacity:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
            return self._files[shard], not known

    def _load(self, shard: int, future: concurrent.futures.Future) -> None:
        try:
            future.set_result(self._read_whole(self._paths[shard]))
        except BaseException as error:  # noqa: BLE001 - raised where the records are read
            with self._lock:
                self._files.pop(shard, None)
            future.set_exception(error)

    def read(self, shard: int, record: int) -> bytes:
        future, mine = self._future(shard)
        if mine:
            self._load(shard, future)
        payloads = future.result()
        if record >= len(payloads):
            raise CorruptImage(f"the file has only {len(payloads)} records")
        payload = payloads[record]
        if isinstance(payload, CorruptImage):
            raise payload
        return payload

    def hint(self, shards: Iterable[int]) -> None:
        """Start reading, on a thread, those of these files that are not in memory yet."""
        for shard in shards:
            future, mine = self._future(shard)
            if mine:
                self._pool.submit(self._load, shard, future)
