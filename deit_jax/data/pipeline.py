"""Records -> host batches: decode once, uint8 canvases, a pool of threads working ahead.

The batch contract is in README.md of this folder. A batch is a pure function of
(source, sizes, seed, step): threads only decide when a canvas row is filled, never with what.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from deit_jax.data.decode import CorruptImage, decode_image
from deit_jax.data.order import TrainOrder
from deit_jax.data.resize import evaluation_square, fit_within
from deit_jax.data.sources import Source
from deit_jax.errors import ConfigError

Batch = dict[str, np.ndarray]
_LOG = logging.getLogger(__name__)
_CHUNK = 8


@dataclasses.dataclass
class _Met:
    """What one task met: images shrunk, record -> reason of the corrupt ones."""

    shrunk: int = 0
    corrupt: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Health:
    """What the batches handed out so far met.

    Attributes:
        images: images read.
        shrunk: of these, those that exceeded the canvas.
        corrupt: record number -> name of those that could not be decoded.
    """

    images: int = 0
    shrunk: int = 0
    corrupt: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def shrunk_share(self) -> float:
        """Share of the images that exceeded the canvas."""
        return self.shrunk / max(self.images, 1)


class CorruptShareExceeded(ConfigError):
    """More records are damaged than `max_corrupt_share` allows."""


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Fetches, decodes and fits records into canvas rows."""

    source: Source
    canvas: int
    fit: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[bytes | np.ndarray], np.ndarray]
    replace: bool
    closed: threading.Event

    def fill(self, batch: Batch, rows: np.ndarray, records: np.ndarray) -> _Met:
        """Fill `rows` of the batch with `records`; how many were shrunk, which are corrupt."""
        met = _Met()
        if self.closed.is_set():
            return met
        images, labels = self.source.get(records)
        for row, record, image, label in zip(rows, records, images, labels, strict=True):
            record = int(record)
            pixels = self._decode(image, record, met)
            while pixels is None and self.replace and len(met.corrupt) < len(self.source):
                # The next record, whoever reads it: the same on every thread and process.
                record = (record + 1) % len(self.source)
                (image,), (label,) = self.source.get(np.array([record]))
                pixels = self._decode(image, record, met)
            if pixels is None:
                if not self.replace:
                    batch["mask"][row] = False
                continue
            if max(pixels.shape[:2]) > self.canvas:
                pixels = self.fit(pixels)
                met.shrunk += 1
            height, width = pixels.shape[:2]
            batch["canvas"][row, :height, :width] = pixels
            batch["size"][row] = height, width
            batch["label"][row] = label
            batch["index"][row] = record
        return met

    def _decode(self, image: bytes | np.ndarray, record: int, met: _Met) -> np.ndarray | None:
        try:
            return self.decode(image)
        except CorruptImage as error:
            met.corrupt[record] = str(error)
            return None


class BatchIterator(Iterator[Batch]):
    """Host batches in order, `prefetch` of them worked on ahead by a pool of threads.

    Attributes:
        health: counts of images, of shrunk ones, of corrupt records and their names.
    """

    def __init__(
        self,
        jobs: Iterator[tuple[Batch, np.ndarray, np.ndarray]],
        reader: _Reader,
        *,
        threads: int,
        prefetch: int,
        max_corrupt_share: float,
    ):
        self.health = Health()
        self._max_corrupt_share = max_corrupt_share
        self._jobs = jobs
        self._reader = reader
        self._depth = max(prefetch, 0) + 1
        self._pending: collections.deque = collections.deque()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "read-and-decode")
        self._finalizer = weakref.finalize(self, _shut_down, reader.closed, self._pool)

    def __next__(self) -> Batch:
        try:
            self._submit()
            if not self._pending:
                raise StopIteration
            batch, count, futures = self._pending.popleft()
            # Counted batch by batch in order, so that where a run stops does not depend
            # on how far the threads have worked ahead.
            self.health.images += count
            for future in futures:
                self._account(future.result())
        except BaseException:
            self.close()
            raise
        self._submit()
        return batch

    def _submit(self) -> None:
        if self._reader.closed.is_set():
            return
        while len(self._pending) < self._depth:
            job = next(self._jobs, None)
            if job is None:
                return
            batch, rows, records = job
            futures = [
                self._pool.submit(
                    self._reader.fill, batch, rows[i : i + _CHUNK], records[i : i + _CHUNK]
                )
                for i in range(0, len(rows), _CHUNK)
            ]
            self._pending.append((batch, len(rows), futures))

    def _account(self, met: _Met) -> None:
        self.health.shrunk += met.shrunk
        source, corrupt = self._reader.source, self.health.corrupt
        for record, reason in met.corrupt.items():
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


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def train_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: int,
    repeats: int = 1,
    mix_group: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    device_count: int = 1,
    rows: Sequence[int] | None = None,
    window_shards: int | None = None,
    threads: int | None = None,
    prefetch: int = 2,
    max_corrupt_share: float = 0.001,
    decode: Callable[[bytes | np.ndarray], np.ndarray] = decode_image,
) -> BatchIterator:
    """Endless training batches from `start_step` on; the order is `order.TrainOrder`'s.

    Args:
        source: records.
        batch_size: global batch B, copies included.
        canvas: side C of the square canvases in pixels; larger images are shrunk to fit.
        repeats: views R of each image in a batch.
        mix_group: rows that mix with each other; None: the whole batch.
        seed: of the order of the records.
        start_step: step of the first batch; any start costs the same.
        device_count: devices of the whole run; the canvases divide among them.
        rows: canvas rows that this process holds, in this order; None: all.
        window_shards: order and reading by windows of that many files.
        threads: None: one per usable core. The batches do not depend on it.
        prefetch: batches worked on ahead of the one asked for.
        max_corrupt_share: a record that cannot be decoded is replaced by the next one,
            logged and counted; more than this share of the data set is an error.
        decode: record -> uint8 [h, w, 3], raising CorruptImage.

    Yields:
        canvas uint8 [n, C, C, 3], size int32 [n, 2], label int32 [n], index int32 [n]
        (n = len(rows)), and with repeats source int32 [B], the canvas row of each global row.

    Raises:
        ConfigError: sizes that do not go together (at once), corrupt share (when met).
    """
    if window_shards is not None and source.shard_lengths is None:
        raise ConfigError("window_shards needs a source of files that hold many records each")
    order = TrainOrder(
        n_records=len(source),
        batch_size=batch_size,
        repeats=repeats,
        mix_group=mix_group,
        seed=seed,
        device_count=device_count,
        shard_lengths=source.shard_lengths,
        window_shards=window_shards,
    )
    held = _held_rows(rows, order.canvases)
    look_ahead = window_shards and _half_window(source, window_shards, batch_size // repeats)

    def jobs():
        step = start_step
        while True:
            plan = order(step)
            batch = _empty_batch(len(held), canvas)
            if plan.source is not None:
                batch["source"] = plan.source
            records = plan.record[held]
            used = np.flatnonzero(records >= 0)
            if look_ahead and step > start_step + prefetch:
                ahead = order(step + look_ahead).record
                source.hint(ahead[ahead >= 0])
            yield batch, used, records[used]
            step += 1

    reader = _Reader(
        source=source,
        canvas=_checked_canvas(canvas),
        fit=lambda image: fit_within(image, canvas),
        decode=decode,
        replace=True,
        closed=threading.Event(),
    )
    return BatchIterator(
        jobs(),
        reader,
        threads=threads or usable_cores(),
        prefetch=prefetch,
        max_corrupt_share=max_corrupt_share,
    )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    canvas: int,
    image_size: int,
    crop_ratio: float = 0.875,
    rows: Sequence[int] | None = None,
    threads: int | None = None,
    prefetch: int = 2,
    max_corrupt_share: float = 0.001,
    decode: Callable[[bytes | np.ndarray], np.ndarray] = decode_image,
) -> BatchIterator:
    """Every record once, in order, the last batch padded; all processes make equally many.

    An image that exceeds the canvas is resized here as Pillow does, its short side to
    int(image_size / crop_ratio), so that the device's resize leaves it as it is.

    Args:
        batch_size: global batch; a multiple of the devices.
        rows: batch rows that this process holds; None: all.
        Others as in `train_batches`.

    Yields:
        canvas, size, label, index as `train_batches`, and mask bool [n], False for padding
        (index -1) and for records that could not be decoded, which are logged and counted.
    """
    short = int(image_size / crop_ratio)
    if canvas < short:
        raise ConfigError(
            f"evaluation at image_size {image_size}, crop_ratio {crop_ratio:g} resizes the short "
            f"side to {short} pixels, more than the canvas of {canvas}; use canvas >= {short}"
        )
    held = _held_rows(rows, batch_size)

    def jobs():
        for start in range(0, len(source), batch_size):
            records = start + held
            used = np.flatnonzero(records < len(source))
            batch = _empty_batch(len(held), canvas)
            batch["mask"] = records < len(source)
            yield batch, used, records[used]

    reader = _Reader(
        source=source,
        canvas=_checked_canvas(canvas),
        fit=lambda image: evaluation_square(image, short=short, image_size=image_size),
        decode=decode,
        replace=False,
        closed=threading.Event(),
    )
    return BatchIterator(
        jobs(),
        reader,
        threads=threads or usable_cores(),
        prefetch=prefetch,
        max_corrupt_share=max_corrupt_share,
    )


def _half_window(source: Source, window_shards: int, images_per_step: int) -> int:
    """Steps in half a window, at least one: how far ahead files are read."""
    window = len(source) * window_shards / len(source.shard_lengths)
    return max(1, int(window / 2 / max(images_per_step, 1)))


def _checked_canvas(canvas: int) -> int:
    if canvas < 1:
        raise ConfigError(f"canvas must be at least 1 pixel, got {canvas}")
    return canvas


def _held_rows(rows: Sequence[int] | None, n: int) -> np.ndarray:
    if rows is None:
        return np.arange(n)
    held = np.asarray(rows, np.int64)
    if held.size and (held.min() < 0 or held.max() >= n):
        raise ConfigError(f"rows {held.min()}..{held.max()} are outside the {n} rows of a batch")
    return held


def _empty_batch(n: int, canvas: int) -> Batch:
    # Fresh memory each time: a device_put on CPU may keep using the host's buffer.
    return {
        "canvas": np.zeros((n, canvas, canvas, 3), np.uint8),
        "size": np.zeros((n, 2), np.int32),
        "label": np.zeros(n, np.int32),
        "index": np.full(n, -1, np.int32),
    }
