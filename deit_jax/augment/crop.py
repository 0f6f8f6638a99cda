"""Where crops lie: RandomResizedCrop, simple random crop, resize, evaluation crop.

Each function turns the true sizes of n images, int32 [n, 2] (height, width),
into the two `Axis` that `resample` needs. Random ones draw from one key per row.
"""

import functools
import math

import jax
import jax.numpy as jnp

from deit_jax.augment import random_bits
from deit_jax.augment.resample import Axis
from deit_jax.errors import ConfigError, unknown

CROPS = ("rrc", "src", "center", "resize")
CROP_TRIES = 10
SRC_PADDING = 4


def check_share(what: str, value: float) -> None:
    """Raises ConfigError unless `value` is in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{what} is a probability or a share, in [0, 1]; got {value}")


def check_range(what: str, bounds: tuple[float, float]) -> None:
    """Raises ConfigError unless `bounds` is (low, high) with 0 < low <= high."""
    if len(bounds) != 2 or not 0.0 < bounds[0] <= bounds[1]:
        raise ConfigError(f"{what} is (low, high) with 0 < low <= high; got {tuple(bounds)}")


def check_crop(
    *,
    crop: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: float,
    vflip: float,
) -> None:
    """Raises ConfigError for crop options that make no sense."""
    if crop not in CROPS:
        raise unknown("crop", crop, CROPS)
    check_range("scale", scale)
    check_range("ratio", ratio)
    check_share("hflip", hflip)
    check_share("vflip", vflip)


def area_boxes(
    word: jax.Array, area: jax.Array, area_range: tuple[float, float], ratio: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Ten candidate (heights, widths) int32 [10] from uint32 [20].

    The area is uniform in `area_range` times `area`, log(width / height) uniform.
    """
    areas = area * random_bits.between(word[:CROP_TRIES], *area_range)
    ratios = jnp.exp(random_bits.between(word[CROP_TRIES:], math.log(ratio[0]), math.log(ratio[1])))
    heights = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    return heights, widths


def _central_box(size: jax.Array, ratio: tuple[float, float]) -> tuple[jax.Array, jax.Array]:
    """The largest (height, width) int32 within the ratio bounds."""
    height, width = size[0], size[1]
    in_ratio = width / height
    narrow = jnp.round(width / min(ratio)).astype(jnp.int32)
    wide = jnp.round(height * max(ratio)).astype(jnp.int32)
    return (
        jnp.where(in_ratio < min(ratio), narrow, height),
        jnp.where(in_ratio > max(ratio), wide, width),
    )


def random_resized_box(
    word: jax.Array, size: jax.Array, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Box int32 [4] (top, left, height, width) of RandomResizedCrop for one image [2].

    word: uint32 [22]. Ten tries of area uniform in `scale` and log aspect uniform,
    then the central crop (timm `RandomResizedCropAndInterpolation`, torchvision
    `RandomResizedCrop`). A side of an image of few pixels is at least 1.
    """
    height, width = size[0], size[1]
    area = (height * width).astype(jnp.float32)
    heights, widths = area_boxes(word[: 2 * CROP_TRIES], area, scale, ratio)
    heights, widths = jnp.maximum(heights, 1), jnp.maximum(widths, 1)
    fits = (heights <= height) & (widths <= width)
    first = jnp.argmax(fits)
    central_h, central_w = _central_box(size, ratio)
    box_h = jnp.where(fits.any(), heights[first], central_h)
    box_w = jnp.where(fits.any(), widths[first], central_w)
    top = jnp.where(
        fits.any(), random_bits.integer(word[-2], height - box_h), (height - box_h) // 2
    )
    left = jnp.where(fits.any(), random_bits.integer(word[-1], width - box_w), (width - box_w) // 2)
    return jnp.stack([top, left, box_h, box_w])


def _axes(
    positions: jax.Array, resized: jax.Array, start: jax.Array, length: jax.Array
) -> tuple[Axis, Axis]:
    """(rows, columns) from [n, 2, out], [n, 2], [n, 2], [n, 2]."""
    rows, columns = (
        Axis(positions[:, i], resized[:, i], start[:, i], length[:, i]) for i in range(2)
    )
    return rows, columns


def _grid(rows: int, out: int) -> jax.Array:
    """int32 [rows, 2, out]: 0..out-1 for both axes."""
    return jnp.broadcast_to(jnp.arange(out, dtype=jnp.int32), (rows, 2, out))


def box_axes(boxes: jax.Array, out: int) -> tuple[Axis, Axis]:
    """Boxes int32 [n, 4] resized to out x out."""
    n = boxes.shape[0]
    return _axes(_grid(n, out), jnp.full((n, 2), out, jnp.int32), boxes[:, :2], boxes[:, 2:])


def short_side_resized(size: jax.Array, short: int) -> jax.Array:
    """Sizes int32 [n, 2] after the short side became `short` (torchvision `Resize(int)`)."""
    return short * size // jnp.min(size, axis=1, keepdims=True)


def reflect(position: jax.Array, length: jax.Array) -> jax.Array:
    """Positions beyond 0..length-1 mirrored at the border pixels (padding mode 'reflect')."""
    position = jnp.abs(position)
    return (length - 1) - jnp.abs(length - 1 - position)


def simple_crop_axes(keys: jax.Array, size: jax.Array, out: int) -> tuple[Axis, Axis]:
    """DeiT-III's simple random crop: short side to `out`, pad 4 by reflection, crop out x out."""
    resized = short_side_resized(size, out)
    offsets = random_bits.integer(random_bits.words(keys, 2), resized + 2 * SRC_PADDING - out)
    positions = _grid(len(size), out) + offsets[:, :, None] - SRC_PADDING
    positions = reflect(positions, resized[:, :, None])
    return _axes(positions, resized, jnp.zeros_like(size), size)


def centre_crop_axes(size: jax.Array, short: int, out: int) -> tuple[Axis, Axis]:
    """Evaluation: short side to `short`, then the central out x out (black where there is none).

    torchvision's `CenterCrop` takes int(round((side - out) / 2)), half to even.
    """
    resized = short_side_resized(size, short)
    margin = resized - out
    half = margin // 2
    offset = jnp.where(margin % 2 == 1, half + half % 2, half)
    # A side shorter than the crop is padded first, with (out - side) // 2 before it.
    offset = jnp.where(margin < 0, -((-margin) // 2), offset)
    positions = _grid(len(size), out) + offset[:, :, None]
    return _axes(positions, resized, jnp.zeros_like(size), size)


def training_axes(
    keys: jax.Array,
    size: jax.Array,
    out: int,
    *,
    crop: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Axis, Axis]:
    """Axes of the training crop `crop` ('rrc', 'src', 'center' or 'resize') for n images."""
    if crop == "rrc":
        draw = functools.partial(random_resized_box, scale=scale, ratio=ratio)
        words = random_bits.words(keys, 2 * CROP_TRIES + 2)
        return box_axes(jax.vmap(draw)(words, size), out)
    if crop == "src":
        return simple_crop_axes(keys, size, out)
    if crop == "center":
        return centre_crop_axes(size, out, out)
    return box_axes(jnp.concatenate([jnp.zeros_like(size), size], axis=1), out)


def flipped(axis: Axis, flip: jax.Array) -> Axis:
    """`axis` read backwards where flip (bool [n]): a flip that costs nothing."""
    position = jnp.where(flip[:, None], axis.position[:, ::-1], axis.position)
    return axis._replace(position=position)
