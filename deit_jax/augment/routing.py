"""Running an operation only on the images that drew it, with static shapes.

The members of a class are compacted into chunks of a static capacity (the expected
number and some standard deviations), and a loop does as many rounds of chunks
as the batch needs: nearly always one. The result never depends on the capacity.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

HEADROOM_SIGMAS = 2.5


class Route(NamedTuple):
    """One class: who is in it, how many are expected, and what happens to them."""

    member: jax.Array  # bool [n]
    share: float  # expected share of the n images
    # (pixels uint8 [m, h, w, 3], arguments each [m, ...]) -> pixels uint8 [m, h, w, 3]
    operation: Callable[..., jax.Array]
    arguments: tuple[jax.Array, ...]  # leading axis n


def apply_routes(pixels: jax.Array, routes: list[Route]) -> jax.Array:
    """Pixels uint8 [n, h, w, 3] after each route's operation on its members.

    An image may be a member of one route only.
    """
    if not routes:
        return pixels
    n = len(pixels)
    plans = []
    for route in routes:
        mean = n * route.share
        spread = HEADROOM_SIGMAS * math.sqrt(mean * (1.0 - route.share))
        size = max(1, min(n, math.ceil(mean + spread)))
        order = jnp.argsort(~route.member, stable=True).astype(jnp.int32)  # members first
        # Padded with rows that do not exist (dropped when written).
        order = jnp.concatenate([order, jnp.zeros(size, jnp.int32)])
        plans.append((route, size, order, route.member.sum()))

    def one_round(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, pixels = carry
        for route, size, order, count in plans:
            slot = number * size + jnp.arange(size)
            rows = jax.lax.dynamic_slice(order, (jnp.minimum(number * size, n),), (size,))
            done = route.operation(pixels[rows], *(x[rows] for x in route.arguments))
            rows = jnp.where(slot < count, rows, n + slot)
            pixels = pixels.at[rows].set(done, mode="drop", unique_indices=True)
        return number + 1, pixels

    rounds = jnp.max(jnp.stack([-(-count // size) for _, size, _, count in plans]))
    carry = (jnp.int32(0), pixels)
    return jax.lax.while_loop(lambda carry: carry[0] < rounds, one_round, carry)[1]
