"""Pillow's color operations, bit for bit, on batches uint8 [n, h, w, 3].

`pointwise` is all operations that need no more than the pixel and a number, as
one expression with neutral defaults; `equalize` and `autocontrast` look at each
channel's histogram; `sharpness` at the neighbors.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLACK, MEAN, GRAY = range(3)
HISTOGRAM_OPERATIONS = AUTO_CONTRAST, EQUALIZE = range(2)


def grayscale(pixels: jax.Array) -> jax.Array:
    """int32 [n, h, w]: luminance as `Image.convert('L')` computes it (ITU-R 601-2)."""
    red, green, blue = (pixels[..., i].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def blend(base: jax.Array, pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """uint8: `Image.blend(base, pixels, factor)`, base + factor * (pixels - base), truncated.

    Pillow rounds the product to float32 before it adds. A compiler may fuse the
    two into one rounding, which flips a pixel now and then; with the factor
    split into two halves of 12 bits both products are exact, so that their sum
    is the rounded product however it is compiled.
    """
    base = base.astype(jnp.float32)
    difference = pixels.astype(jnp.float32) - base
    bits = jax.lax.bitcast_convert_type(factor, jnp.uint32) & jnp.uint32(0xFFFFF000)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    product = high * difference + (factor - high) * difference
    return jnp.clip(base + product, 0.0, 255.0).astype(jnp.uint8)


class Pointwise(NamedTuple):
    """Numbers of the pointwise operations, each [n]; the defaults of `neutral` do nothing."""

    mask: jax.Array  # uint8: bits to keep (posterize)
    threshold: jax.Array  # int32: levels from here on are inverted (solarize; 0 inverts all)
    add: jax.Array  # int32: added to levels below 128 (solarize-add)
    base: jax.Array  # int32: BLACK, MEAN or GRAY (brightness, contrast, color)
    factor: jax.Array  # float32: weight of the image against the base


def neutral(n: int) -> Pointwise:
    """Numbers that leave n images as they are."""
    return Pointwise(
        mask=jnp.full(n, 255, jnp.uint8),
        threshold=jnp.full(n, 256, jnp.int32),
        add=jnp.zeros(n, jnp.int32),
        base=jnp.full(n, BLACK, jnp.int32),
        factor=jnp.ones(n, jnp.float32),
    )


def pointwise(pixels: jax.Array, numbers: Pointwise) -> jax.Array:
    """One pass that posterizes, solarizes, adds and blends; all but one are neutral as a rule.

    They run in this order; the contrast's mean and the gray are of the input.
    """
    mask, threshold, add, base, factor = (x[:, None, None, None] for x in numbers)
    gray = grayscale(pixels)
    count, total = gray[0].size, gray.sum((1, 2))
    quotient = total // count
    mean = quotient + (2 * (total - quotient * count) >= count)  # int(mean + 0.5)
    mean = mean[:, None, None, None]
    bases = jnp.where(base == GRAY, gray[..., None], jnp.where(base == MEAN, mean, 0))
    levels = (pixels & mask).astype(jnp.int32)
    levels = jnp.where(levels >= threshold, 255 - levels, levels)
    levels = jnp.where(levels < 128, jnp.minimum(levels + add, 255), levels)
    return blend(bases, levels, factor)


def histogram(pixels: jax.Array) -> jax.Array:
    """int32 [n, 3, 256] of uint8 [n, h, w, 3], as a product of one-hot nibbles (no scatter)."""
    n, height, width, _ = pixels.shape
    levels = pixels.reshape(n, height * width, 3)
    nibble = jnp.arange(16, dtype=jnp.uint8)
    high, low = (
        (part[..., None] == nibble[None, None, None]).astype(jnp.bfloat16)
        for part in (levels >> 4, levels & 15)
    )
    # float32 sums of ones are exact up to 2^24 pixels.
    counts = jnp.einsum("npch,npcl->nchl", high, low, preferred_element_type=jnp.float32)
    return counts.reshape(n, 3, 256).astype(jnp.int32)


def equalize_table(counts: jax.Array) -> jax.Array:
    """Look-up table int32 [..., 256] of `ImageOps.equalize` for a histogram int32 [..., 256]."""
    identity = jnp.broadcast_to(jnp.arange(256), counts.shape)
    last = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1, keepdims=True)
    step = (counts.sum(-1, keepdims=True) - jnp.take_along_axis(counts, last, axis=-1)) // 255
    before = jnp.cumsum(counts, axis=-1) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, identity)


@functools.cache
def _truncation_deficits() -> tuple[np.ndarray, np.ndarray]:
    """Where `ImageOps.autocontrast` lands one level low: (gcds [256], bits uint32 [256, 256]).

    It computes int(v * scale + offset) in float64, which for whole results
    255 (v - lo) / (hi - lo) sometimes is a hair too small. Those have
    v - lo = j (hi - lo) / g with g = gcd(255, hi - lo); bit j at [lo, hi - lo] says so.
    """
    gcds = np.array([math.gcd(255, d) for d in range(256)], np.int32)
    bits = np.zeros((256, 256), np.uint32)
    for spread in range(1, 255):
        g = int(gcds[spread])
        scale = 255.0 / spread
        # Multiples of 17 and more have a scale that float64 holds exactly, but for 17 itself.
        for j in range(1, min(g, 31) + 1):
            lo = np.arange(256 - spread)
            levels = ((lo + j * spread // g) * scale + (-lo * scale)).astype(int)
            bits[lo, spread] |= (levels < 255 * j // g).astype(np.uint32) << j
    return gcds, bits


def autocontrast_table(counts: jax.Array) -> jax.Array:
    """Look-up table int32 [..., 256] of `ImageOps.autocontrast` for a histogram [..., 256]."""
    identity = jnp.broadcast_to(jnp.arange(256), counts.shape)
    low = jnp.argmax(counts > 0, axis=-1, keepdims=True)
    spread = 255 - jnp.argmax(counts[..., ::-1] > 0, axis=-1, keepdims=True) - low
    above = identity - low
    gcds, bits = (jnp.asarray(table) for table in _truncation_deficits())
    safe = jnp.maximum(spread, 1)
    step, rest = jnp.divmod(above * gcds[spread], safe)
    whole = (rest == 0) & (step > 0) & (step < 32)
    deficit = jnp.where(whole, bits[low, spread] >> jnp.clip(step, 0, 31).astype(jnp.uint32), 0) & 1
    table = jnp.clip(above * 255 // safe - deficit.astype(jnp.int32), 0, 255)
    return jnp.where(spread > 0, table, identity)


def histogram_operation(pixels: jax.Array, kind: jax.Array, _: jax.Array) -> jax.Array:
    """Equalize or autocontrast, kind int32 [n] of HISTOGRAM_OPERATIONS; neither has an argument."""
    counts = histogram(pixels)
    chosen = (kind == EQUALIZE)[:, None, None]
    table = jnp.where(chosen, equalize_table(counts), autocontrast_table(counts))
    table = table.astype(jnp.uint8).reshape(-1, 3 * 256)
    entry = pixels.astype(jnp.int32) + 256 * jnp.arange(3, dtype=jnp.int32)[None, None, None]
    levels = jnp.take_along_axis(table, entry.reshape(len(pixels), -1), axis=1)
    return levels.reshape(pixels.shape)


def sharpness(pixels: jax.Array, factor: jax.Array) -> jax.Array:
    """`ImageEnhance.Sharpness`: blend with the smoothed image; its border is not smoothed."""
    levels = pixels.astype(jnp.int32)
    rows = levels[:, :-2] + levels[:, 1:-1] + levels[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    total = box + 4 * levels[:, 1:-1, 1:-1]
    smooth = levels.at[:, 1:-1, 1:-1].set((2 * total + 13) // 26)
    return blend(smooth, levels, factor[:, None, None, None])
