"""Pillow's antialiased `Image.resize` as two matrix products per image.

Pillow (Resample.c, version < 13) resizes horizontally, rounds to uint8, resizes
vertically and rounds again; its weights are 22-bit fixed-point numbers. Both
passes are matrix products with the weights of one axis. An `Axis` describes one
such matrix, so that a crop, a flip, a centre crop after the resize and a
reflected border are all the same code with other integers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deit_jax.errors import unknown

WEIGHT_BITS = 22  # PRECISION_BITS in Pillow's Resample.c
MATMULS = ("auto", "float32", "float16x2", "bfloat16x3")


class Axis(NamedTuple):
    """What every output pixel of one axis is made of, for n images.

    The source pixels [start, start + length) are resized to `resized` pixels and
    output pixel o is number position[o] of those; a position outside
    [0, resized) gives black, as a centre crop larger than the image does.
    """

    position: jax.Array  # int32 [n, out]
    resized: jax.Array  # int32 [n]
    start: jax.Array  # int32 [n]
    length: jax.Array  # int32 [n]


def _bicubic(x: jax.Array) -> jax.Array:
    """Keys' kernel with a = -0.5, which Pillow's resize uses (its affine uses a = -1)."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return jnp.where(x < 1.0, near, jnp.where(x < 2.0, far, 0.0))


def axis_weights(axis: Axis, canvas_size: int) -> jax.Array:
    """The matrices of `axis`: float32 [n, out, canvas_size], integers (weight * 2^22).

    The distance of a source pixel to the output pixel's centre is formed from
    integers: in float32 coordinates near 500 it would be good to 1e-5 only.
    """
    position, resized, start, length = (
        axis.position[:, :, None],
        axis.resized[:, None, None],
        axis.start[:, None, None],
        axis.length[:, None, None],
    )
    whole, rest = jnp.divmod((2 * position + 1) * length, 2 * resized)
    pixel = jnp.arange(canvas_size, dtype=jnp.int32)[None, None, :] - start
    distance = (pixel - whole).astype(jnp.float32) + (0.5 - rest / (2.0 * resized))
    shrink = jnp.maximum(length / resized.astype(jnp.float32), 1.0)
    inside = (pixel >= 0) & (pixel < length)
    weight = jnp.where(inside, _bicubic(distance / shrink), 0.0)
    weight = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-6)
    exists = (position >= 0) & (position < resized)
    return jnp.round(jnp.where(exists, weight, 0.0) * 2.0**WEIGHT_BITS)


def resolve_matmul(matmul: str) -> str:
    """'auto' made concrete for the default backend.

    uint8 pixels are exact in half precision, and two float16 (22 bits) or three
    bfloat16 (24 bits) terms hold a 22-bit weight exactly, so the products run on
    tensor cores and lose nothing. float16 is native on GPUs, bfloat16 on TPUs.
    """
    if matmul not in MATMULS:
        raise unknown("matmul", matmul, MATMULS)
    if matmul != "auto":
        return matmul
    return {"gpu": "float16x2", "tpu": "bfloat16x3"}.get(jax.default_backend(), "float32")


def _product(weights: jax.Array, pixels: jax.Array, matmul: str) -> jax.Array:
    """Contraction over the last axes: [n, o, k] and [n, a, b, k] to [n, o, a, b], to levels."""
    numbers = (((2,), (3,)), ((0,), (0,)))
    if matmul == "float32":
        sums = jax.lax.dot_general(
            weights, pixels.astype(jnp.float32), numbers, precision=jax.lax.Precision.HIGHEST
        )
        return sums * 2.0**-WEIGHT_BITS
    dtype, terms = (jnp.float16, 2) if matmul == "float16x2" else (jnp.bfloat16, 3)
    pixels = pixels.astype(dtype)
    rest = weights * 2.0**-WEIGHT_BITS
    total = None
    for _ in range(terms):
        term = rest.astype(dtype)
        part = jax.lax.dot_general(term, pixels, numbers, preferred_element_type=jnp.float32)
        rest = rest - term.astype(jnp.float32)
        total = part if total is None else total + part
    return total


def _to_levels(values: jax.Array) -> jax.Array:
    return jnp.clip(jnp.floor(values + 0.5), 0.0, 255.0).astype(jnp.uint8)


def resample(canvas: jax.Array, rows: Axis, columns: Axis, *, matmul: str) -> jax.Array:
    """Resized images uint8 [n, out rows, out columns, 3] of canvases uint8 [n, h, w, 3].

    Equal to Pillow < 13 but for float32 rounding at ties. Both contractions run
    over the last axis of both operands, and the result comes out in NHWC.
    """
    across = axis_weights(columns, canvas.shape[2])
    down = axis_weights(rows, canvas.shape[1])
    planes = jnp.transpose(canvas, (0, 3, 1, 2))
    half = _to_levels(_product(across, planes, matmul))
    return _to_levels(_product(down, half, matmul))
