"""Random numbers of the augmentation: one block of random words per row and stage.

One threefry call per stage instead of one per number keeps the program, and the
time to compile it, small. What a number means is its place in the block.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

# Part of a run's identity: the number that is folded into a row's key for each name (None: the
# unchanged key of the batch). Any other name has a number above 2^31 from its hash, so that a new
# stage changes no other draws.
NUMBERS = {"crop": 0, "flip": 1, "erasing": 2, "operations": 3, "color_jitter": 4, "mix": None}


def named(key: jax.Array, name: str) -> jax.Array:
    """The key or keys [n] that `name` draws from."""
    number = NUMBERS.get(name, np.uint32(1 << 31 | zlib.crc32(name.encode())))
    if number is None:
        return key
    if key.ndim == 0:
        return jax.random.fold_in(key, number)
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, number)


def words(keys: jax.Array, count: int) -> jax.Array:
    """Random uint32 [n, count] for keys [n]."""
    return jax.vmap(lambda key: jax.random.bits(key, (count,)))(keys)


def unit(word: jax.Array) -> jax.Array:
    """float32 uniform in [0, 1) of uint32, 24 bits."""
    return (word >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)


def between(word: jax.Array, low: float, high: float) -> jax.Array:
    """float32 uniform in [low, high)."""
    return low + (high - low) * unit(word)


def integer(word: jax.Array, high: jax.Array) -> jax.Array:
    """int32 uniform on 0..high inclusive (Python's `random.randint(0, high)`)."""
    draw = jnp.floor(unit(word) * (high + 1).astype(jnp.float32))
    return jnp.minimum(draw.astype(jnp.int32), high)


def chance(word: jax.Array, prob: float | jax.Array) -> jax.Array:
    """bool, true with `prob`."""
    return unit(word) < prob


def normal(word: jax.Array) -> jax.Array:
    """float32 N(0, 1) of uint32, by the inverse of its distribution function."""
    # Odd multiples of 2^-23 in (-1, 1): exact in float32, never -1 or 1 (infinite).
    symmetric = ((word >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-22) - 1.0
    return jnp.float32(2.0**0.5) * jax.lax.erf_inv(symmetric)
