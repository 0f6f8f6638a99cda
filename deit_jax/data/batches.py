"""The pool of threads that reads, decodes and fills canvases, some batches ahead."""

import collections
import concurrent.futures
import ctypes
import dataclasses
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deit_jax.data.decode import MAX_PIXELS
from deit_jax.data.headers import frame
from deit_jax.data.source import CorruptImage, Record, Source
from deit_jax.errors import ConfigError

Batch = dict[str, np.ndarray]
# Record number -> why the record cannot be decoded.
Reasons = dict[int, str]
_LOG = logging.getLogger(__name__)
_CHUNK = 8


class CanvasMemory:
    """Memory for uint8 [n, C, C, 3] arrays, reused once nothing refers to the array any more.

    Fresh memory for every batch costs a tenth of all host time, most of it the system's
    clearing of pages. A fixed ring would be wrong: a device_put on CPU may keep using the
    host's buffer for as long as the device array lives.
    """

    def __init__(self, rows: int, canvas: int):
        self._shape = (rows, canvas, canvas, 3)
        self._free: collections.deque = collections.deque()

    def array(self) -> np.ndarray:
        """An array with undefined content."""
        memory = self._free.pop() if self._free else np.zeros(self._shape, np.uint8)
        # Every view of the array, in NumPy and in JAX, refers to `holder`.
        holder: Any = (ctypes.c_uint8 * memory.nbytes).from_buffer(memory.data)
        weakref.finalize(holder, self._free.append, memory).atexit = False
        return np.frombuffer(holder, np.uint8).reshape(self._shape)


@dataclasses.dataclass
class Health:
    """Counts over all batches returned so far; they only grow.

    Attributes:
        images: images read; a record counts each time that it is read.
        shrunk: of these, those that were larger than the canvas.
        corrupt_names: record number -> name of the records that could not be decoded.
    """

    images: int = 0
    shrunk: int = 0
    corrupt_names: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def corrupt(self) -> int:
        """Different records that could not be decoded."""
        return len(self.corrupt_names)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """How batches are loaded; the batches do not depend on `threads` and `prefetch`.

    Attributes:
        threads: that read and decode; None: one per usable core.
        prefetch: batches loaded ahead of the next one.
        max_corrupt_share: of the data set. Records that cannot be decoded are logged and
            counted; more of them than this share are an error, and so are all of them.
        max_pixels: height times width above which an image is not decoded but counts as
            corrupt.

    Raises:
        ConfigError: an option out of range.
    """

    threads: int | None = None
    prefetch: int = 2
    max_corrupt_share: float = 0.001
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        if self.threads is not None and self.threads < 1:
            raise ConfigError(
                f"threads must be at least 1, or None for one per core, not {self.threads}"
            )
        if self.prefetch < 0:
            raise ConfigError(f"prefetch must be at least 0, not {self.prefetch}")
        if not 0 <= self.max_corrupt_share <= 1:
            raise ConfigError(f"max_corrupt_share must be in [0, 1], not {self.max_corrupt_share}")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels must be at least 1, not {self.max_pixels}")


class CorruptShareExceeded(ConfigError):
    """More records are damaged than `max_corrupt_share` allows, or all of them."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Fetches, decodes and fits records into canvas rows.

    Attributes:
        fit: uint8 [h, w, 3] larger than the canvas -> one that fits.
        decode: record -> uint8 [h, w, 3], raising CorruptImage.
        replace: a corrupt record by the next one; else mask its row.
        closed: set when the batches are no longer needed.
    """

    source: Source
    canvas: int
    fit: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[Record], np.ndarray]
    replace: bool
    closed: threading.Event = dataclasses.field(default_factory=threading.Event)

    def fill(self, batch: Batch, rows: np.ndarray, records: np.ndarray) -> tuple[int, Reasons]:
        """Fill `rows` of the batch with `records`: how many were shrunk, which are corrupt."""
        shrunk, corrupt = 0, {}
        if self.closed.is_set():
            return shrunk, corrupt
        images, labels = self.source.get(records)
        for row, record, image, label in zip(rows, records, images, labels, strict=True):
            record = int(record)
            pixels = self._decode(image, record, corrupt)
            while pixels is None and self.replace and len(corrupt) < len(self.source):
                # The next record of the data set: the same on every thread and process.
                record = (record + 1) % len(self.source)
                (image,), (label,) = self.source.get(np.array([record]))
                pixels = self._decode(image, record, corrupt)
            if pixels is None:
                batch["canvas"][row] = 0
                if not self.replace:
                    batch["mask"][row] = False
                continue
            if max(pixels.shape[:2]) > self.canvas:
                pixels = self.fit(pixels)
                shrunk += 1
            elif isinstance(image, bytes) and max(frame(image)[:2]) > self.canvas:
                # Decoded at a fraction of its size.
                shrunk += 1
            height, width = pixels.shape[:2]
            batch["canvas"][row, :height, :width] = pixels
            batch["canvas"][row, :height, width:] = 0
            batch["canvas"][row, height:] = 0
            batch["size"][row] = height, width
            batch["label"][row] = label
            batch["index"][row] = record
        return shrunk, corrupt

    def _decode(self, image: Record, record: int, corrupt: Reasons) -> np.ndarray | None:
        try:
            return self.decode(image)
        except CorruptImage as error:
            corrupt[record] = str(error)
            return None


class BatchIterator(Iterator[Batch]):
    """Host batches in order, loaded ahead by a pool of threads.

    Attributes:
        health: counts of images, shrunk images and corrupt records so far.
    """

    def __init__(
        self, jobs: Iterator[tuple[Batch, np.ndarray, np.ndarray]], reader: Reader, loading: Loading
    ):
        self.health = Health()
        self._max_corrupt_share = loading.max_corrupt_share
        self._jobs = jobs
        self._reader = reader
        self._depth = loading.prefetch + 1
        self._pending: collections.deque = collections.deque()
        threads = loading.threads or usable_cores()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "read-and-decode")
        self._finalizer = weakref.finalize(self, _shut_down, reader.closed, self._pool)

    def __next__(self) -> Batch:
        try:
            self._submit()
            if not self._pending:
                raise StopIteration
            batch, count, futures = self._pending.popleft()
            # Counted batch by batch in order, so that the step at which a run stops does not
            # depend on how far ahead the threads are.
            self.health.images += count
            for future in futures:
                self._account(*future.result())
        except BaseException:
            self.close()
            raise
        self._submit()
        return batch

    def _submit(self) -> None:
        missing = 0 if self._reader.closed.is_set() else self._depth - len(self._pending)
        for batch, rows, records in itertools.islice(self._jobs, missing):
            futures = [
                self._pool.submit(
                    self._reader.fill, batch, rows[i : i + _CHUNK], records[i : i + _CHUNK]
                )
                for i in range(0, len(rows), _CHUNK)
            ]
            self._pending.append((batch, len(rows), futures))

    def _account(self, shrunk: int, reasons: Reasons) -> None:
        self.health.shrunk += shrunk
        source, corrupt = self._reader.source, self.health.corrupt_names
        for record, reason in reasons.items():
            if record in corrupt:
                continue
            name = corrupt[record] = source.record_name(record)
            _LOG.warning("cannot decode %s, skipped (%d so far): %s", name, len(corrupt), reason)
        if len(corrupt) > self._max_corrupt_share * len(source):
            raise CorruptShareExceeded(
                f"{len(corrupt)} of {len(source)} records cannot be decoded, more than "
                f"max_corrupt_share={self._max_corrupt_share:g} allows: "
                f"{', '.join(list(corrupt.values())[:5])}; repair or remove them, or raise "
                f"max_corrupt_share above {len(corrupt) / len(source):.2g}"
            )
        if len(corrupt) == len(source):
            raise CorruptShareExceeded(
                f"none of the {len(source)} records can be decoded: "
                f"{', '.join(list(corrupt.values())[:5])}"
            )

    def close(self) -> None:
        """Stop the threads; harmless when repeated."""
        self._pending.clear()
        self._finalizer()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _shut_down(closed: threading.Event, pool: concurrent.futures.Executor) -> None:
    closed.set()
    pool.shutdown(wait=True, cancel_futures=True)
