"""Records -> host batches: decode once, uint8 canvases, a pool of threads working ahead.

The batch contract is in README.md of this folder. A batch is a pure function of
(source, sizes, seed, step): threads only decide when a canvas row is filled, never with what.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from deit_jax.data.batches import Batch, BatchIterator, CanvasMemory, Reader
from deit_jax.data.decode import decode_image
from deit_jax.data.order import TrainOrder
from deit_jax.data.resize import evaluation_square, fit_within
from deit_jax.data.source import Record, Source
from deit_jax.errors import ConfigError


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
    decode: Callable[[Record], np.ndarray] | None = None,
) -> BatchIterator:
    """Endless training batches from `start_step` on; the order is `order.TrainOrder`'s.

    Args:
        batch_size: global batch B, the `repeats` copies R of each image included.
        canvas: side C of the square canvases in pixels; larger images are shrunk to fit, a
            JPEG of twice that and more while it is decoded.
        mix_group: rows that mix with each other; None: the whole batch.
        seed, start_step: any start costs the same.
        device_count: devices of the whole run; the canvases divide among them.
        rows: canvas rows that this process holds, in this order; None: all.
        window_shards: order and read by windows of that many files.
        threads: None: one per usable core. The batches do not depend on it.
        prefetch: batches worked on ahead of the one asked for.
        max_corrupt_share: a record that cannot be decoded is replaced by the next one,
            logged and counted; more than this share of the data set is an error.
        decode: record -> uint8 [h, w, 3], raising CorruptImage; None: `decode_image`.

    Yields:
        canvas uint8 [n, C, C, 3], size int32 [n, 2], label int32 [n], index int32 [n]
        (n = len(rows)), and with repeats canvas_index int32 [B], the canvas row of each global row.

    Raises:
        ConfigError: sizes that do not go together (at once), corrupt share (when met).
    """
    if prefetch < 0 or (threads is not None and threads < 1) or not 0 <= max_corrupt_share <= 1:
        raise ConfigError(
            f"threads={threads} must be at least 1 (None: one per core), prefetch={prefetch} at "
            f"least 0, max_corrupt_share={max_corrupt_share} in [0, 1]"
        )
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
    jobs = _train_jobs(
        source,
        order,
        canvas=_checked_canvas(canvas),
        held=_held_rows(rows, order.canvases),
        start_step=start_step,
        hint_from=start_step + prefetch + 1,
        hint_ahead=window_shards and _half_window(source, window_shards, batch_size // repeats),
    )
    fit = functools.partial(fit_within, canvas=canvas)
    decode = decode or functools.partial(decode_image, at_least=canvas)
    reader = Reader(source=source, canvas=canvas, fit=fit, decode=decode, replace=True)
    return BatchIterator(
        jobs,
        reader,
        threads=threads or usable_cores(),
        prefetch=prefetch,
        max_corrupt_share=max_corrupt_share,
    )


def _train_jobs(
    source: Source,
    order: TrainOrder,
    *,
    canvas: int,
    held: np.ndarray,
    start_step: int,
    hint_from: int,
    hint_ahead: int | None,
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
    """Endless (empty batch, rows to fill, their records) from `start_step` on."""
    memory = CanvasMemory(len(held), canvas)
    for step in itertools.count(start_step):
        plan = order(step)
        records = plan.record[held]
        batch, used = _new_batch(memory, records)
        if plan.canvas_index is not None:
            batch["canvas_index"] = plan.canvas_index
        if hint_ahead and step >= hint_from:
            ahead = order(step + hint_ahead).record
            source.hint(ahead[ahead >= 0])
        yield batch, used, records[used]


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
    decode: Callable[[Record], np.ndarray] = decode_image,
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
    fit = functools.partial(evaluation_square, short=short, image_size=image_size)
    reader = Reader(source=source, canvas=canvas, fit=fit, decode=decode, replace=False)
    return BatchIterator(
        _eval_jobs(len(source), batch_size, canvas=canvas, held=_held_rows(rows, batch_size)),
        reader,
        threads=threads or usable_cores(),
        prefetch=prefetch,
        max_corrupt_share=max_corrupt_share,
    )


def _eval_jobs(
    n_records: int, batch_size: int, *, canvas: int, held: np.ndarray
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
    """(empty batch, rows to fill, their records) until every record was named once."""
    memory = CanvasMemory(len(held), canvas)
    for start in range(0, n_records, batch_size):
        records = np.where(start + held < n_records, start + held, -1)
        batch, used = _new_batch(memory, records)
        batch["mask"] = records >= 0
        yield batch, used, records[used]


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


def _new_batch(memory: CanvasMemory, records: np.ndarray) -> tuple[Batch, np.ndarray]:
    """A batch whose rows without a record (-1) are zeros, and the rows that are to be filled."""
    n = len(records)
    batch = {
        "canvas": memory.take(),
        "size": np.zeros((n, 2), np.int32),
        "label": np.zeros(n, np.int32),
        "index": np.full(n, -1, np.int32),
    }
    batch["canvas"][records < 0] = 0
    return batch, np.flatnonzero(records >= 0)
