"""Pillow's antialiased `Image.resize` as two matrix products per image.

Pillow (Resample.c, version < 13) resizes horizontally, rounds to uint8, resizes
vertically and rounds again; its weights are 22-bit fixed-point numbers. Both
passes are matrix products with the weights of one axis. `Axes` describes these
matrices, so that a crop, a flip, a center crop after the resize and a
reflected border are all the same code with other integers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deit_jax.errors import unknown

WEIGHT_BITS = 22  # PRECISION_BITS in Pillow's Resample.c

# How a product is multiplied: (dtype, bits per term). The terms of a 22-bit weight
# with its sign are integers that the dtype holds exactly, as it does the pixels.
MATMULS = {
    "float32": (jnp.float32, (12, 12)),
    "float16x2": (jnp.float16, (12, 12)),
    "bfloat16x3": (jnp.bfloat16, (8, 8, 8)),
}
# What the matrix units of a platform do natively; elsewhere float32.
_NATIVE = {"cuda": "float16x2", "rocm": "float16x2", "tpu": "bfloat16x3"}


class Axes(NamedTuple):
    """Where the output pixels of n images come from, for the rows and the columns [n, 2].

    The source pixels [start, start + length) are resized to `resized` pixels, and output pixel
    o is number position[o] of those; a position outside [0, resized) gives black, as a center
    crop larger than the image does.
    """

    position: jax.Array  # int32 [n, 2, out]
    resized: jax.Array  # int32 [n, 2]
    start: jax.Array  # int32 [n, 2]
    length: jax.Array  # int32 [n, 2]


def _bicubic(x: jax.Array) -> jax.Array:
    """Keys' kernel with a = -0.5, which Pillow's resize uses (its affine uses a = -1).

    In factors: with no sum of products in it, it compiles to the same bits everywhere.
    """
    x = jnp.abs(x)
    # The roots are 1 and (1 +- sqrt(7)) / 3.
    near = 1.5 * (x - 1.0) * (x - 1.2152504370215302) * (x + 0.5485837703548635)
    far = -0.5 * (x - 1.0) * (x - 2.0) * (x - 2.0)
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def axis_weights(axes: Axes, axis: int, canvas_size: int) -> jax.Array:
    """The matrices of one axis: int32 [n, out, canvas_size], weight * 2^22.

    The distance of a source pixel to the output pixel's center is formed from
    integers (in float32 coordinates near 500 it would be good to 1e-5 only), and
    integers are added up, so that the order of the sum does not matter.
    """
    position = axes.position[:, axis, :, None]
    resized, start, length = (field[:, axis, None, None] for field in axes[1:])
    whole, rest = jnp.divmod((2 * position + 1) * length, 2 * resized)
    pixel = jnp.arange(canvas_size, dtype=jnp.int32)[None, None, :] - start
    distance = (pixel - whole).astype(jnp.float32) + (0.5 - rest / (2 * resized))
    shrink = jnp.maximum(length / resized, 1.0)
    inside = (pixel >= 0) & (pixel < length)
    weight = jnp.where(inside, _fixed(_bicubic(distance / shrink)), 0)
    total = jnp.maximum(weight.sum(-1, keepdims=True), 1)
    exists = (position >= 0) & (position < resized)
    return jnp.where(exists, _fixed(weight / total), 0)


def _fixed(weight: jax.Array) -> jax.Array:
    return jnp.round(weight * 2.0**WEIGHT_BITS).astype(jnp.int32)


def check_matmul(matmul: str) -> None:
    """Raises ConfigError unless `matmul` is a name of `MATMULS` or 'auto'."""
    if matmul != "auto" and matmul not in MATMULS:
        raise unknown("matmul", matmul, ["auto", *MATMULS])


def _weighted_levels(weights: jax.Array, pixels: jax.Array, matmul: str) -> jax.Array:
    """Contraction over the last axes: int32 [n, o, k], uint8 [n, a, b, k] to uint8 [n, o, a, b].

    The weights are split into terms of few bits. Every product and, up to 32
    taps or a shrinking by 8, every sum of a term is a whole number below 2^24: no
    bit is lost, whatever the order of the sum. (Beyond, only the last few may be.)
    """
    dtype, widths = MATMULS[matmul]
    pixels = pixels.astype(dtype)
    total, shift, rest = 0, 0, weights
    for width in widths:
        upper = (rest + (1 << (width - 1))) >> width
        term = (rest - (upper << width)).astype(dtype)
        part = jax.lax.dot_general(
            term,
            pixels,
            (((2,), (3,)), ((0,), (0,))),
            precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
            preferred_element_type=jnp.float32,
        )
        total = total + (part.astype(jnp.int32) << shift)
        rest, shift = upper, shift + width
    return jnp.clip((total + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS, 0, 255).astype(jnp.uint8)


def resample(canvas: jax.Array, axes: Axes, *, matmul: str) -> jax.Array:
    """Resized images uint8 [n, out rows, out columns, 3] of canvases uint8 [n / r, h, w, 3].

    Of each canvas r neighboring images, for which it is read once. `matmul` is a name of
    `MATMULS`; 'auto' is what the matrix units do natively where the program runs.

    Pillow < 13's integer arithmetic; a weight may differ by 2^-22, since it is
    computed in float32. Both contractions run over the last axis of both operands, and
    the result comes out in NHWC.
    """
    down, across = (axis_weights(axes, i, canvas.shape[1 + i]) for i in range(2))
    if matmul != "auto":
        return _resampled(canvas, down, across, matmul=matmul)
    by_name = {name: functools.partial(_resampled, matmul=name) for name in MATMULS}
    native = {platform: by_name[name] for platform, name in _NATIVE.items()}
    return jax.lax.platform_dependent(canvas, down, across, **native, default=by_name["float32"])


def _resampled(canvas: jax.Array, down: jax.Array, across: jax.Array, *, matmul: str) -> jax.Array:
    """`resample` with the matrices of both axes."""
    planes = jnp.transpose(canvas, (0, 3, 1, 2))
    copies = across.reshape(len(canvas), -1, across.shape[-1])
    narrow = _weighted_levels(copies, planes, matmul)
    return _weighted_levels(down, narrow.reshape(across.shape[:2] + narrow.shape[2:]), matmul)
