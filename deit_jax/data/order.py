"""Which record goes to which row: the order of the data as a pure function of (seed, step).

Nothing here is carried from step to step, so a start at any step costs the same
and a checkpoint needs no iterator state.

An epoch e has S = `steps_per_epoch` steps. Its order is
`numpy.random.RandomState([seed, e]).permutation(n_records)`, a stream that NumPy
promises never to change (NEP 19). At step (e, s) the stream positions are
q = s * B + p for p in 0..B-1; with R repeats, position q is record
perm_e[q // R]: an epoch contains the first S * B / R images of the permutation R
times each (DeiT, arXiv 2012.12877, section 5.6; 427,008 distinct images per epoch
for ImageNet at batch 1,024 and 3 repeats).
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deit_jax.errors import ConfigError


class BatchIndex(NamedTuple):
    """The records of one training batch.

    Attributes:
        record: int64 [n], record number of every canvas row, -1 for padding.
        canvas_index: int32 [B], canvas row of every global batch row; None without repeats,
            where row i is canvas i.
    """

    record: np.ndarray
    canvas_index: np.ndarray | None


def steps_per_epoch(n_records: int, batch_size: int, repeats: int = 1) -> int:
    """Full batches in an epoch; the records that are left over are in none of them.

    Without repeats n_records // batch_size. With repeats as DeiT's `RASampler`, which rounds
    n_records down to a multiple of 256, shares that among its ranks and leaves out the last,
    incomplete batch of each: floor(floor(n_records // 256 * 256 / ranks) / (B / ranks)), which is
    n_records // 256 * 256 // B for any number of ranks (1,281,167 at 1,024 give the published
    1,251). Fewer than 256 records, of which `RASampler` takes none, are not rounded.

    Raises:
        ConfigError: there is no full batch.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    rounded = n_records // 256 * 256 if repeats > 1 and n_records >= 256 else n_records
    if rounded < batch_size:
        down = " rounded down to a multiple of 256, for the repeats" * (rounded < n_records)
        raise ConfigError(
            f"batch_size must be at most {rounded}, the number of training images{down}, "
            f"not {batch_size}"
        )
    return rounded // batch_size


def distinct_images_per_epoch(n_records: int, batch_size: int, repeats: int = 1) -> int:
    """Different images in one epoch; each is in it `repeats` times."""
    return -(-steps_per_epoch(n_records, batch_size, repeats) * batch_size // repeats)


def canvas_count(batch_size: int, repeats: int, device_count: int = 1) -> int:
    """Number of canvases n of a global batch, the same at every step.

    Without repeats n = B. With R repeats a step uses at most
    ceil((B + R - 1) / R) images; n is that, rounded up to a multiple of the devices.
    """
    if repeats < 1:
        raise ConfigError(f"repeats must be at least 1, not {repeats}")
    if batch_size % device_count:
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by the {device_count} devices; "
            f"nearest: {max(batch_size // device_count, 1) * device_count}"
        )
    if repeats == 1:
        return batch_size
    most = -(-(batch_size + repeats - 1) // repeats)
    return -(-most // device_count) * device_count


def batch_rows(batch_size: int, mix_group: int) -> np.ndarray:
    """Global batch row of every stream position, int64 [B].

    Row = (p % G) * g + p // G with G = B // g groups of g rows: neighbors in the stream,
    and so the copies of one image, are in different mix groups, as they are on different
    ranks in the reference. With fewer groups than copies some share a group, as they do there.
    """
    if mix_group < 1 or batch_size % mix_group:
        raise ConfigError(f"mix_group {mix_group} does not divide batch_size {batch_size}")
    position = np.arange(batch_size)
    groups = batch_size // mix_group
    return (position % groups) * mix_group + position // groups


def canvas_orders(batch_size: int, repeats: int, mix_group: int | None = None) -> np.ndarray:
    """All that `BatchIndex.canvas_index` may be, int32 [V, B].

    The V = repeats / gcd(B, repeats) of them differ by how many copies of the first image were in
    the batch before; order v has v gcd(B, repeats).
    """
    rows = batch_rows(batch_size, batch_size if mix_group is None else mix_group)
    shift = math.gcd(batch_size, repeats)
    orders = np.empty((repeats // shift, batch_size), np.int32)
    before = shift * np.arange(len(orders))[:, None]
    orders[:, rows] = (before + np.arange(batch_size)) // repeats
    return orders


def epoch_permutation(n_records: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the records in one epoch, int64 [n_records]."""
    return np.random.RandomState([seed, epoch]).permutation(n_records)


def window_permutation(
    shard_lengths: Sequence[int], window_shards: int, seed: int, epoch: int
) -> np.ndarray:
    """Order of one epoch that can be read window by window, int64 [sum(shard_lengths)].

    The shards are permuted, `window_shards` of them at a time form a window, and the
    records are permuted inside each window: reading in this order touches one window
    after the other, so a store without fast positional reads can be read shard by shard.
    """
    lengths = np.asarray(shard_lengths, np.int64)
    starts = np.cumsum(lengths) - lengths
    random = np.random.RandomState([seed, epoch])
    shards = random.permutation(len(lengths))
    windows = []
    for first in range(0, len(shards), window_shards):
        members = shards[first : first + window_shards]
        records = np.concatenate([starts[i] + np.arange(int(lengths[i])) for i in members])
        windows.append(random.permutation(records))
    return np.concatenate(windows)


class TrainOrder:
    """`order(step) -> BatchIndex`, a pure function; caches the permutations of two epochs.

    Args:
        n_records: size of the training set.
        batch_size: global batch B, copies included.
        repeats: copies of each image in the batch, R.
        mix_group: rows of a mix group g; None for one group, the whole batch.
        seed: of the run.
        device_count: all devices of the run, not only this process's.
        period: steps after which the order repeats; None: never.
        shard_lengths, window_shards: with `window_shards`, the order is `window_permutation`.

    Raises:
        ConfigError: sizes that are not compatible, naming what would be.
    """

    def __init__(
        self,
        *,
        n_records: int,
        batch_size: int,
        repeats: int = 1,
        mix_group: int | None = None,
        seed: int = 0,
        device_count: int = 1,
        period: int | None = None,
        shard_lengths: Sequence[int] = (),
        window_shards: int | None = None,
    ):
        self.batch_size = batch_size
        self.repeats = repeats
        self.period = period
        self.steps_per_epoch = steps_per_epoch(n_records, batch_size, repeats)
        self.canvases = canvas_count(batch_size, repeats, device_count)
        self._rows = batch_rows(batch_size, batch_size if mix_group is None else mix_group)
        self._canvas_orders = canvas_orders(batch_size, repeats, mix_group)
        if window_shards is None or shard_lengths is None:
            permutation = functools.partial(epoch_permutation, n_records, seed)
        else:
            permutation = functools.partial(
                window_permutation, tuple(shard_lengths), window_shards, seed
            )
        self._permutation = functools.lru_cache(maxsize=2)(permutation)

    def __call__(self, step: int) -> BatchIndex:
        epoch, step_of_epoch = divmod(step % (self.period or step + 1), self.steps_per_epoch)
        permutation = self._permutation(epoch)
        positions = step_of_epoch * self.batch_size + np.arange(self.batch_size)
        record = np.full(self.canvases, -1, np.int64)
        if self.repeats == 1:
            record[self._rows] = permutation[positions]
            return BatchIndex(record, None)
        unique = positions // self.repeats
        first, last = unique[0], unique[-1]
        record[: last - first + 1] = permutation[first : last + 1]
        before = positions[0] % self.repeats
        number = before // math.gcd(self.batch_size, self.repeats)
        return BatchIndex(record, self._canvas_orders[number].copy())
