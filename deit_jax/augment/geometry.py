"""Pillow's affine transforms with bicubic resampling, on batches uint8 [n, h, w, 3].

`Image.transform` uses Keys' kernel with a = -1 (its resize has a = -0.5), does
not antialias, truncates, clamps the neighbors at the border and fills where the
center of a pixel comes from outside (Geometry.c). It works in float64; here places
are fixed-point numbers (see `fixed_point`), and levels are interpolated in float32 as
differences to a pixel nearby, which leaves a few values in a million one level off.

The three channels of a pixel travel in one uint32 word, which makes every move
of pixels a third of the work.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from deit_jax.augment import fixed_point
from deit_jax.augment.fixed_point import BITS, MAX_SIDE, ONE, Fixed

LINE_OPERATIONS = SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(4)


def pack(pixels: jax.Array) -> jax.Array:
    """uint32 [...] of uint8 [..., 3]."""
    red, green, blue = (pixels[..., i].astype(jnp.uint32) for i in range(3))
    return red | (green << 8) | (blue << 16)


def unpack(words: jax.Array) -> jax.Array:
    """uint8 [..., 3] of uint32 [...]."""
    return jnp.stack([(words >> (8 * i)).astype(jnp.uint8) for i in range(3)], axis=-1)


def _channels(words: jax.Array) -> list[jax.Array]:
    return [((words >> (8 * i)) & 255).astype(jnp.float32) for i in range(3)]


def _cubic(taps: Iterable[jax.Array], d: jax.Array) -> jax.Array:
    """Keys' a = -1 between the inner two of four taps, in Pillow's order: exact on flat areas."""
    v1, v2, v3, v4 = taps
    p2 = v3 - v1
    p3 = 2.0 * (v1 - v2) + v3 - v4
    p4 = v2 - v1 - v3 + v4
    return v2 + d * (p2 + d * (p3 + d * p4))


def _less(channels: list[jax.Array], near: list[jax.Array]) -> list[jax.Array]:
    return [channel - base for channel, base in zip(channels, near, strict=True)]


def _to_words(near: list[jax.Array], changes: list[jax.Array]) -> jax.Array:
    """uint32 of the levels near + changes, rounded down and clipped, as Pillow truncates.

    Interpolated are differences to a pixel nearby: in float32 the sum with its level would
    now and then be rounded up to the next whole number.
    """
    levels = (base + jnp.floor(change) for base, change in zip(near, changes, strict=True))
    red, green, blue = (jnp.clip(level, 0.0, 255.0).astype(jnp.uint32) for level in levels)
    return red | (green << 8) | (blue << 16)


def _transposed_where(words: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.where(where[:, None, None], jnp.swapaxes(words, 1, 2), words)


def _inside(doubled_high: jax.Array, side: int) -> jax.Array:
    """Whether a coordinate, doubled, of which this is the upper word, is in [0, side)."""
    return (doubled_high >= 0) & (doubled_high < 2 * side * ONE)


def _check_side(side: int) -> None:
    if side > MAX_SIDE:
        raise ValueError(f"images of side {side} cannot be moved: at most {MAX_SIDE} pixels")


def move_lines(
    pixels: jax.Array, kind: jax.Array, amount: jax.Array, *, fill: tuple[int, int, int]
) -> jax.Array:
    """Shear or translate: kind int32 [n] of LINE_OPERATIONS, amount float32 [n].

    amount: the slope of a shear, the share of the side of a translation; times the side
    below 4096. Every line has its own shift, so each is one contiguous slice and four taps; the
    vertical ones run on the transposed image. Square images.
    Raises ValueError for sides above 1024.
    """
    n, side = pixels.shape[:2]
    _check_side(side)
    vertical = (kind == SHEAR_Y) | (kind == TRANSLATE_Y)
    words = _transposed_where(pack(pixels), vertical)
    sheared = (kind == SHEAR_X) | (kind == SHEAR_Y)
    odd = 2 * jnp.arange(side, dtype=jnp.int32) + 1  # centers of pixels, doubled
    doubled_line = jnp.where(sheared[:, None], odd[None, :], 2 * side)
    doubled_shift = fixed_point.carried(
        *(word[:, None] * doubled_line for word in fixed_point.fixed(amount))
    )
    whole, part = fixed_point.split_half(doubled_shift)
    part = part[:, :, None]
    # Beyond one side everything is fill.
    whole = jnp.clip(whole, -side, side)
    margin = side + 2
    padded = jnp.pad(words, ((0, 0), (0, 0), (margin, margin)), mode="edge")
    take = jax.vmap(jax.vmap(lambda row, start: jax.lax.dynamic_slice(row, (start,), (side + 3,))))
    slices = take(padded, margin + whole - 1)
    taps = [_channels(slices[:, :, i : i + side]) for i in range(4)]
    near = taps[1]
    taps = [_less(tap, near) for tap in taps]
    moved = _to_words(near, [_cubic(channel, part) for channel in zip(*taps, strict=True)])
    center = (odd << BITS)[None, None, :] + doubled_shift.high[:, :, None]
    words = jnp.where(_inside(center, side), moved, pack(jnp.array(fill, jnp.uint8)))
    return unpack(_transposed_where(words, vertical))


def _turned(cosine: Fixed, along: jax.Array, sine: Fixed, across: jax.Array, side: int) -> Fixed:
    """Doubled coordinate about the center of `side`: cosine * along + sine * across."""
    high, low = (
        a[:, None, None] * along + b[:, None, None] * across
        for a, b in zip(cosine, sine, strict=True)
    )
    return fixed_point.carried(high + side * ONE, low)


def turned_from(degrees: jax.Array, height: int, width: int) -> tuple[Fixed, Fixed]:
    """Where the pixels of images turned by float32 [n] come from: doubled x, y, each [n, h, w]."""
    cosine, sine = fixed_point.cosine_and_sine(degrees)
    minus_sine = fixed_point.carried(-sine.high, -sine.low)
    # Centers of pixels from the image's center, doubled.
    y = (2 * jnp.arange(height, dtype=jnp.int32) + 1 - height)[None, :, None]
    x = (2 * jnp.arange(width, dtype=jnp.int32) + 1 - width)[None, None, :]
    from_x = _turned(cosine, x, minus_sine, y, width)
    return from_x, _turned(cosine, y, sine, x, height)


def rotate(pixels: jax.Array, degrees: jax.Array, *, fill: tuple[int, int, int]) -> jax.Array:
    """`Image.rotate(degrees)` about the center, degrees float32 [n], counter-clockwise.

    Raises ValueError for sides above 1024.
    """
    n, height, width = pixels.shape[:3]
    _check_side(max(height, width))
    words = pack(pixels).reshape(n, height * width)
    from_x, from_y = turned_from(degrees, height, width)
    inside = _inside(from_x.high, width) & _inside(from_y.high, height)
    left, part_x = fixed_point.split_half(from_x._replace(high=from_x.high - ONE))
    top, part_y = fixed_point.split_half(from_y._replace(high=from_y.high - ONE))
    left, top = left - 1, top - 1

    def line(i: int) -> list[list[jax.Array]]:
        start = jnp.clip(top + i, 0, height - 1) * width
        taps = []
        for j in range(4):
            index = (start + jnp.clip(left + j, 0, width - 1)).reshape(n, height * width)
            tap = jnp.take_along_axis(words, index, axis=1)
            taps.append(_channels(tap.reshape(n, height, width)))
        return taps

    square = [line(i) for i in range(4)]
    near = square[1][1]
    lines = [
        [
            _cubic(channel, part_x)
            for channel in zip(*(_less(tap, near) for tap in taps), strict=True)
        ]
        for taps in square
    ]
    turned = _to_words(near, [_cubic(channel, part_y) for channel in zip(*lines, strict=True)])
    return unpack(jnp.where(inside, turned, pack(jnp.array(fill, jnp.uint8))))
