"""Source coordinates as 36-bit fixed-point numbers in two int32 words.

Pillow finds where a pixel comes from in float64 and fills where that is outside. In float32
the place is wrong by up to 2^-17 pixels, and of ten million pixels a few beside the border
of a turned image fall on its other side. Sums of integers are exact, and no compiler can
round or fuse them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BITS = 18
ONE = 1 << BITS
# Sums of two products with a side's doubled pixel numbers stay inside int32.
MAX_SIDE = 1024


class Fixed(NamedTuple):
    """(high + low / ONE) / ONE with 0 <= low < ONE; int32."""

    high: jax.Array
    low: jax.Array


def carried(high: jax.Array, low: jax.Array) -> Fixed:
    """The number of any two int32 words."""
    return Fixed(high + (low >> BITS), low & (ONE - 1))


def total(*terms: Fixed) -> Fixed:
    """Sum of a few numbers."""
    return functools.reduce(lambda a, b: carried(a.high + b.high, a.low + b.low), terms)


def fixed(value: jax.Array) -> Fixed:
    """float32 below 2^13 to the nearest 2^-36."""
    scaled = value * jnp.float32(ONE)
    high = jnp.floor(scaled)
    low = jnp.round((scaled - high) * jnp.float32(ONE))
    return carried(high.astype(jnp.int32), low.astype(jnp.int32))


def product(a: jax.Array, b: jax.Array) -> Fixed:
    """a * b of float32: halves of 12 bits, whose products float32 holds exactly."""
    return total(*(fixed(x * y) for x in _halves(a) for y in _halves(b)))


def _halves(value: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32) & jnp.uint32(0xFFFFF000)
    upper = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return upper, value - upper


def split_half(doubled: Fixed) -> tuple[jax.Array, jax.Array]:
    """Whole part int32 (rounded down) and rest float32 in [0, 1] of half of a number."""
    rest = (doubled.high & (2 * ONE - 1)).astype(jnp.float32) * jnp.float32(0.5 / ONE)
    rest = rest + doubled.low.astype(jnp.float32) * jnp.float32(0.5 / ONE**2)
    return doubled.high >> (BITS + 1), rest


@functools.cache
def _whole_degrees() -> dict[str, np.ndarray]:
    """Of 0..359 degrees: cosine as Fixed words and float32, and by radian as two float32s."""
    cosine = np.cos(np.radians(np.arange(360.0)))
    scaled = np.round(cosine * ONE**2).astype(np.int64)
    slope = np.radians(cosine)
    first = slope.astype(np.float32)
    return {
        "high": (scaled >> BITS).astype(np.int32),
        "low": (scaled & (ONE - 1)).astype(np.int32),
        "value": cosine.astype(np.float32),
        "slope": first,
        "slope_rest": (slope - first).astype(np.float32),
    }


def cosine_and_sine(degrees: jax.Array) -> tuple[Fixed, Fixed]:
    """Of float32 [n] degrees, good to 2^-33: whole degrees from a table, the rest by its series."""
    whole = jnp.round(degrees)
    rest = degrees - whole  # exact, at most half a degree
    turn = whole.astype(jnp.int32) % 360
    table = {name: jnp.asarray(column) for name, column in _whole_degrees().items()}
    at_cosine = {name: column[turn] for name, column in table.items()}
    at_sine = {name: column[(turn + 270) % 360] for name, column in table.items()}
    angle = rest * jnp.float32(np.pi / 180)
    square = angle * angle
    to_cosine = square * (square / 24 - 0.5)  # cos(angle) - 1
    to_sine = square * angle / 6  # angle - sin(angle)

    def turned(base: dict, other: dict, sign: int) -> Fixed:
        """base * cos(angle) + sign * other * sin(angle)."""
        small = base["value"] * to_cosine - sign * other["value"] * to_sine
        return total(
            Fixed(base["high"], base["low"]),
            product(sign * rest, other["slope"]),
            fixed(sign * rest * other["slope_rest"]),
            fixed(small),
        )

    return turned(at_cosine, at_sine, -1), turned(at_sine, at_cosine, 1)
