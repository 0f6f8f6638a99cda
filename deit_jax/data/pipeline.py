"""Records -> host batches: decode once, uint8 canvases, tf.data working ahead.

The batch contract is in README.md of this folder. A batch is a pure function of
(source, sizes, seed, step): threads only decide when a canvas row is filled, never with what.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from deit_jax import builders
from deit_jax.data.batches import BatchIterator, Loading
from deit_jax.data.canvases import Batch, CanvasMemory, Job, Reader
from deit_jax.data.order import TrainOrder
from deit_jax.data.resize import evaluation_square, fit_within
from deit_jax.data.source import Source
from deit_jax.errors import ConfigError, check_at_most

# Pixels; the crop multiplies by a matrix of this many columns.
MOST_CANVAS = 2**14


@builders.composes({"loading": Loading})
def train_batches(
    source: Source,
    batch_size: int,
    mix_group: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    device_count: int = 1,
    rows: Sequence[int] | np.ndarray | None = None,
    period: int | None = None,
    *,
    canvas: int = 512,
    repeats: int = 1,
    **options,
) -> BatchIterator:
    """Endless training batches from `start_step` on; the order is `order.TrainOrder`'s.

    Args:
        batch_size: global batch B, the `repeats` copies R of each image included.
        mix_group: rows that mix with each other; None: the whole batch.
        seed, start_step: any start costs the same.
        device_count: devices of the whole run; the canvases divide among them.
        rows: canvas rows that this process makes, in this order; None: all.
        period: steps after which the batches repeat; None: never.
        canvas: side C of the square canvases in pixels; larger images are shrunk to fit, a
            JPEG of at least twice that size while it is decoded.
        repeats: copies of each image in the batch (repeated augmentation).
        options: of `Loading`.

    Yields:
        canvas uint8 [n, C, C, 3], size int32 [n, 2], label int32 [n], index int32 [n]
        (n = len(rows)), and with repeats canvas_index int32 [B], the canvas row of each global
        row. A record that cannot be decoded is replaced by the next one.

    Raises:
        ConfigError: sizes that are not compatible (immediately), more corrupt records than
            `max_corrupt_share` allows (from `next`).
    """
    loading = check_reading(canvas=canvas, repeats=repeats, **options)
    order = TrainOrder(
        n_records=len(source),
        batch_size=batch_size,
        repeats=repeats,
        mix_group=mix_group,
        seed=seed,
        device_count=device_count,
        period=period,
        shard_lengths=source.shard_lengths,
        window_shards=source.window_shards,
    )
    local = _local_rows(rows, order.canvases)
    jobs = _train_jobs(order, canvas, local, start_step)
    reader = Reader(
        source=source,
        canvas=canvas,
        fit=functools.partial(fit_within, canvas=canvas),
        at_least=canvas,
        max_pixels=loading.max_pixels,
        exif_orientation=getattr(source, "exif_orientation", False),
        replace=True,
    )
    hints = _hints(source, order, start_step + loading.prefetch + 1)
    return BatchIterator(jobs, len(local), reader, loading, hints)


def check_reading(*, canvas: int, repeats: int, **options) -> Loading:
    """The options of `Loading`, or a ConfigError; `train_batches` takes the same options."""
    if canvas < 1:
        raise ConfigError(f"canvas must be at least 1 pixel, not {canvas}")
    check_at_most(MOST_CANVAS, canvas=canvas)
    if repeats < 1:
        raise ConfigError(f"repeats must be at least 1, not {repeats}")
    check_at_most(1000, repeats=repeats)
    return Loading(**options)


def _train_jobs(order: TrainOrder, canvas: int, rows: np.ndarray, start_step: int) -> Iterator[Job]:
    """Endless (empty batch, rows to fill, their records) from `start_step` on."""
    memory = CanvasMemory(len(rows), canvas)
    for step in itertools.count(start_step):
        record, canvas_index = order(step)
        records = record[rows]
        batch, to_fill = _new_batch(memory, records)
        if canvas_index is not None:
            batch["canvas_index"] = canvas_index
        yield batch, to_fill, records[to_fill]


def _hints(source: Source, order: TrainOrder, step: int) -> Iterator[None]:
    """With windows, tells the source at every step what it is asked for half a window later."""
    ahead = _half_window(source, order.batch_size // order.repeats)
    while ahead:
        later = order(step + ahead).record
        source.hint(later[later >= 0])
        yield
        step += 1


@builders.composes({"loading": Loading})
def eval_batches(
    source: Source,
    batch_size: int,
    canvas: int,
    image_size: int,
    crop_ratio: float = 0.875,
    rows: Sequence[int] | np.ndarray | None = None,
    **options,
) -> BatchIterator:
    """Every record once, in order, the last batch padded; all processes make equally many.

    An image that is larger than the canvas is resized here as Pillow does, its short side to
    int(image_size / crop_ratio), so that the device's resize does not change it.

    Args:
        batch_size: global batch; a multiple of the devices.
        canvas: side C of the square canvases in pixels.
        image_size, crop_ratio: of the evaluation crop.
        rows: batch rows that this process makes; None: all.
        options: of `Loading`.

    Yields:
        canvas, size, label, index as `train_batches`, and mask bool [n], False for padding
        (index -1) and for records that could not be decoded.

    Raises:
        ConfigError: a canvas that is too small (immediately), more corrupt records than
            `max_corrupt_share` allows (from `next`).
    """
    short = int(image_size / crop_ratio)
    if canvas < short:
        raise ConfigError(
            f"canvas must be at least {short}, not {canvas}: evaluation at image_size "
            f"{image_size}, crop_ratio {crop_ratio:g} resizes the short side to {short} pixels"
        )
    loading = Loading(**options)
    reader = Reader(
        source=source,
        canvas=canvas,
        fit=functools.partial(evaluation_square, short=short, image_size=image_size),
        at_least=None,
        max_pixels=loading.max_pixels,
        exif_orientation=getattr(source, "exif_orientation", False),
        replace=False,
    )
    local = _local_rows(rows, batch_size)
    jobs = _eval_jobs(len(source), batch_size, canvas, local)
    return BatchIterator(jobs, len(local), reader, loading)


def _eval_jobs(n_records: int, batch_size: int, canvas: int, rows: np.ndarray) -> Iterator[Job]:
    """(empty batch, rows to fill, their records) until every record has been yielded once."""
    memory = CanvasMemory(len(rows), canvas)
    for start in range(0, n_records, batch_size):
        records = np.where(start + rows < n_records, start + rows, -1)
        batch, to_fill = _new_batch(memory, records)
        batch["mask"] = records >= 0
        yield batch, to_fill, records[to_fill]


def _half_window(source: Source, images_per_step: int) -> int | None:
    """Steps in half a window, at least one: how far ahead files are read."""
    if source.window_shards is None:
        return None
    window = len(source) * source.window_shards / len(source.shard_lengths)
    return max(1, int(window / 2 / max(images_per_step, 1)))


def _local_rows(rows: Sequence[int] | np.ndarray | None, n: int) -> np.ndarray:
    if rows is None:
        return np.arange(n)
    local = np.asarray(rows, np.int64)
    if local.size and (local.min() < 0 or local.max() >= n):
        raise ValueError(f"rows {local.min()}..{local.max()} are outside the {n} rows of a batch")
    return local


def _new_batch(memory: CanvasMemory, records: np.ndarray) -> tuple[Batch, np.ndarray]:
    """A batch whose rows without a record (-1) are zeros, and the rows that are to be filled."""
    n = len(records)
    batch = {
        "canvas": memory.array(),
        "size": np.zeros((n, 2), np.int32),
        "label": np.zeros(n, np.int32),
        "index": np.full(n, -1, np.int32),
    }
    batch["canvas"][records < 0] = 0
    return batch, np.flatnonzero(records >= 0)
