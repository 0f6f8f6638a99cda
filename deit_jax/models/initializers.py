"""Initial values, drawn in few different sizes.

A random generator compiles anew for every shape that it draws, half a second each on a
CPU. So sizes are rounded up to a power of two, and equal ones share their program.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

_SMALLEST = 1 << 14


def normal(std: float) -> Callable[..., jax.Array]:
    """Plain normal with mean 0, f32.

    Not a truncated one: timm's `trunc_normal_(std=.02)` cuts at +-2 absolute, i.e. never,
    while jax's cuts at two standard deviations (its std is .0176).
    """
    return lambda key, shape, dtype=jnp.float32: std * _rounded(jax.random.normal, key, shape)


def uniform(bound: float) -> Callable[..., jax.Array]:
    """Uniform in +-bound, f32."""
    return lambda key, shape, dtype=jnp.float32: (
        bound * (2 * _rounded(jax.random.uniform, key, shape) - 1)
    )


def _rounded(draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size = math.prod(shape)
    values = draw(key, (max(_SMALLEST, 1 << (size - 1).bit_length()),))
    return values[:size].reshape(shape)
