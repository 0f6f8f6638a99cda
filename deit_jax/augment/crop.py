"""Where crops are: RandomResizedCrop, simple random crop, resize, evaluation crop.

An entry of `CROPS` is a factory `crop(image_size, *, options)` that checks its options and
returns `axes(keys, size)`: from one key per row [n] and the true sizes int32 [n, 2] (height,
width) of n images to the `Axes` that `resample` needs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import builders
from deit_jax.augment import random_bits
from deit_jax.augment.resample import Axes, check_matmul, resample
from deit_jax.augment.stage import Draw, Supplied, check_range, check_share, noted

Crop = Callable[[jax.Array, jax.Array], Axes]

CROP_TRIES = 10
SRC_PADDING = 4


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
    aspect = width / height
    narrow = jnp.round(width / ratio[0]).astype(jnp.int32)
    wide = jnp.round(height * ratio[1]).astype(jnp.int32)
    found = fits.any()
    box_h = jnp.where(found, heights[first], jnp.where(aspect < ratio[0], narrow, height))
    box_w = jnp.where(found, widths[first], jnp.where(aspect > ratio[1], wide, width))
    free_h, free_w = height - box_h, width - box_w
    top = jnp.where(found, random_bits.integer(word[-2], free_h), free_h // 2)
    left = jnp.where(found, random_bits.integer(word[-1], free_w), free_w // 2)
    return jnp.stack([top, left, box_h, box_w])


def _grid(rows: int, out: int) -> jax.Array:
    """int32 [rows, 2, out]: 0..out-1 for both axes."""
    return jnp.broadcast_to(jnp.arange(out, dtype=jnp.int32), (rows, 2, out))


def box_axes(boxes: jax.Array, out: int) -> Axes:
    """Boxes int32 [n, 4] resized to out x out."""
    n = len(boxes)
    return Axes(_grid(n, out), jnp.full((n, 2), out, jnp.int32), boxes[:, :2], boxes[:, 2:])


def short_side_resized(size: jax.Array, short: int) -> jax.Array:
    """Sizes int32 [n, 2] after the short side became `short` (torchvision `Resize(int)`)."""
    return short * size // jnp.min(size, axis=1, keepdims=True)


def reflect(position: jax.Array, length: jax.Array) -> jax.Array:
    """Positions beyond 0..length-1 mirrored at the border pixels (padding mode 'reflect')."""
    position = jnp.abs(position)
    return (length - 1) - jnp.abs(length - 1 - position)


def center_crop_axes(size: jax.Array, short: int, out: int) -> Axes:
    """Evaluation: short side to `short`, then the central out x out (black where there is none).

    torchvision's `CenterCrop` takes int(round((side - out) / 2)), half to even.
    """
    resized = short_side_resized(size, short)
    margin = resized - out
    half = margin // 2
    offset = jnp.where(margin % 2 == 1, half + half % 2, half)
    # A side shorter than the crop is padded first, with (out - side) // 2 before it.
    offset = jnp.where(margin < 0, -((-margin) // 2), offset)
    return Axes(_grid(len(size), out) + offset[:, :, None], resized, jnp.zeros_like(size), size)


def random_resized_crop(
    image_size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Crop:
    """RandomResizedCrop: a random share (scale) of the area at a random aspect (ratio)."""
    check_range(1, scale=scale)
    check_range(1000, ratio=ratio)
    box = lambda word, size: random_resized_box(word, size, scale, ratio)

    def axes(keys: jax.Array, size: jax.Array) -> Axes:
        words = random_bits.words(keys, 2 * CROP_TRIES + 2)
        return box_axes(jax.vmap(box)(words, size), image_size)

    return axes


def simple_random_crop(image_size: int) -> Crop:
    """Simple random crop (DeiT-III): short side to the size, 4 pixels reflected, random crop."""

    def axes(keys: jax.Array, size: jax.Array) -> Axes:
        resized = short_side_resized(size, image_size)
        most = resized + 2 * SRC_PADDING - image_size
        offsets = random_bits.integer(random_bits.words(keys, 2), most)
        positions = _grid(len(size), image_size) + offsets[:, :, None] - SRC_PADDING
        positions = reflect(positions, resized[:, :, None])
        return Axes(positions, resized, jnp.zeros_like(size), size)

    return axes


def center_crop(image_size: int) -> Crop:
    """Center crop: short side to the size, then the center."""
    return lambda keys, size: center_crop_axes(size, image_size, image_size)


def resize(image_size: int) -> Crop:
    """The whole image resized, aspect ratio ignored."""
    whole = lambda size: jnp.concatenate([jnp.zeros_like(size), size], axis=1)
    return lambda keys, size: box_axes(whole(size), image_size)


CROPS = {"rrc": random_resized_crop, "src": simple_random_crop}
CROPS |= {"center": center_crop, "resize": resize}


def flipped(axes: Axes, flip: jax.Array) -> Axes:
    """`axes` read backwards where flip (bool [n, 2]): a flip that costs nothing."""
    position = jnp.where(flip[:, :, None], axes.position[:, :, ::-1], axes.position)
    return axes._replace(position=position)


@builders.chooses(crop=CROPS)
def make_crop(
    supplied: Supplied,
    *,
    crop: str = "rrc",
    hflip: float = 0.5,
    vflip: float = 0.0,
    matmul: str = "auto",
    **options: Any,
) -> Callable[[Draw, jax.Array, jax.Array], jax.Array]:
    """Crop to the image size, and flips.

    Args:
      crop: a name of `CROPS`; options: its own.
      hflip, vflip: probabilities.
      matmul: how the crop multiplies, see `resample`.

    Returns:
      (draw, canvas uint8 [n / r, C, C, 3], size int32 [n / r, 2]) -> uint8 [n, s, s, 3], r
      neighboring rows of each canvas.
    """
    axes_of = builders.choose(CROPS, crop, "crop")(supplied.image_size, **options)
    check_share(hflip=hflip, vflip=vflip)
    check_matmul(matmul)

    def cropped(draw: Draw, canvas: jax.Array, size: jax.Array) -> jax.Array:
        keys = draw("crop")
        axes = axes_of(keys, jnp.repeat(size, len(keys) // len(size), axis=0))
        if hflip > 0 or vflip > 0:
            coins = random_bits.words(draw("flip"), 2)[:, ::-1]
            axes = flipped(axes, random_bits.chance(coins, jnp.array([[vflip, hflip]])))
        return resample(canvas, axes, matmul=matmul)

    return noted(cropped, f"{supplied.image_size} x {supplied.image_size} pixels, bicubic")
