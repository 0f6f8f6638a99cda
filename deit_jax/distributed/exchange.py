"""Rows that change their device: each travels to the one device that wants it, and to no other.

XLA makes `x[index]` of rows that are cut over devices by giving all of them to every device. What
is wanted where is known before anything runs, when it is one of a few orders; then a row needs to
be sent once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec


class Round(NamedTuple):
    """Devices that send at the same time, each to one other, each the same number of rows."""

    pairs: list[tuple[int, int]]  # (from, to), each device at most once on either side
    rows: int


def make_exchange(
    mesh: Mesh, orders: np.ndarray, sources: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`exchange(x, number)`: `x[orders[number]]` of rows that are cut over a mesh.

    Args:
      mesh: whose devices hold equal blocks of the rows, in its order.
      orders: int [V, B], each a row of x for each row of the result.
      sources: rows of x.

    Returns:
      (x [sources, ...], int32 []) -> [B, ...], both cut over the devices.

    Raises:
      ValueError: the devices do not divide the rows.
    """
    devices = mesh.size
    if orders.shape[1] % devices or sources % devices:
        raise ValueError(f"{devices} devices cannot share {sources} and {orders.shape[1]} rows")
    rounds = plan(_counts(orders, sources, devices).max(0))
    sent, taken = _tables(orders, sources, devices, rounds)
    rows = PartitionSpec(mesh.axis_names)

    def own(x: jax.Array, sent: jax.Array, taken: jax.Array) -> jax.Array:
        pool, first = [x], 0
        for pairs, count in rounds:
            part = x[sent[0, first : first + count]]
            pool.append(jax.lax.ppermute(part, mesh.axis_names, pairs))
            first += count
        return jnp.concatenate(pool)[taken[0]]

    by_rows = jax.shard_map(own, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return lambda x, number: by_rows(x, jnp.asarray(sent)[number], jnp.asarray(taken)[number])


def plan(counts: np.ndarray) -> list[Round]:
    """Rounds in which device i sends counts[i, j] rows to device j, those of most rows first."""
    left = {(int(i), int(j)) for i, j in np.argwhere(counts) if i != j}
    rounds = []
    while left:
        ordered = sorted(left, key=lambda pair: (-counts[pair], (pair[1] - pair[0]) % len(counts)))
        senders, receivers, pairs = set(), set(), []
        for source, target in ordered:
            if source not in senders and target not in receivers:
                senders.add(source)
                receivers.add(target)
                pairs.append((source, target))
        rounds.append(Round(pairs, int(counts[pairs[0]])))
        left -= set(pairs)
    return rounds


def _counts(orders: np.ndarray, sources: int, devices: int) -> np.ndarray:
    """Rows from each device to each, int64 [V, devices, devices]."""
    counts = np.zeros((len(orders), devices, devices), np.int64)
    target = np.arange(orders.shape[1]) * devices // orders.shape[1]
    for number, order in enumerate(orders):
        np.add.at(counts[number], (order * devices // sources, target), 1)
    return counts


def _tables(
    orders: np.ndarray, sources: int, devices: int, rounds: list[Round]
) -> tuple[np.ndarray, np.ndarray]:
    """Which of its rows each device sends, and which of those it then has it takes, in order.

    int32 [V, devices, rows sent], round after round, and int32 [V, devices, B / devices], numbers
    in its own rows and all that it has received.
    """
    own, wanted = sources // devices, orders.shape[1] // devices
    sent = np.zeros((len(orders), devices, sum(r.rows for r in rounds)), np.int32)
    taken = np.zeros((len(orders), devices, wanted), np.int32)
    for number, order in enumerate(orders):
        source, local = np.divmod(order.reshape(devices, wanted), own)
        for device in range(devices):
            at = source[device] == device
            taken[number, device, at] = local[device, at]
        first = 0
        for pairs, count in rounds:
            for source_device, target in pairs:
                (at,) = np.nonzero(source[target] == source_device)
                slots = first + np.arange(len(at))
                sent[number, source_device, slots] = local[target, at]
                taken[number, target, at] = own + slots
            first += count
    return sent, taken
