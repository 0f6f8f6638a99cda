"""Random erasing (arXiv 1708.04896) as timm's `RandomErasing` does it, after normalisation."""

import math

import jax
import jax.numpy as jnp

from deit_jax.augment import random_bits
from deit_jax.augment.crop import CROP_TRIES, area_boxes, check_share
from deit_jax.errors import ConfigError, unknown

ERASING_MODES = ("pixel", "rand", "const")
AREA_RANGE = (0.02, 1 / 3)
ASPECT_RANGE = (0.3, 1 / 0.3)
BOX_WORDS = 2 * CROP_TRIES + 2
NOISE_WORDS = 3


def check_erasing(*, prob: float, mode: str, count: int) -> None:
    """Raises ConfigError for options that make no sense."""
    check_share("erasing_prob", prob)
    if mode not in ERASING_MODES:
        raise unknown("erasing_mode", mode, ERASING_MODES)
    if count < 1:
        raise ConfigError(f"erasing_count is 1 or more (erasing_prob=0 is off); got {count}")


def erase_boxes(word: jax.Array, height: int, width: int, prob: float) -> jax.Array:
    """Boxes int32 [m, 4] (top, left, height, width) of one image; unused ones are empty.

    word: uint32 [2 + 22 m]. With `prob`, 1..m boxes whose areas are drawn from 2 %
    to a third of the image divided by their number; ten tries for a box strictly
    smaller than the image, else none.
    """
    boxes = word[2:].reshape(-1, BOX_WORDS)
    count = 1 + random_bits.integer(word[0], jnp.int32(len(boxes) - 1))
    wanted = jnp.where(random_bits.chance(word[1], prob), count, 0)

    def one_box(box: jax.Array, number: jax.Array) -> jax.Array:
        area = jnp.float32(height * width) / count
        # The aspect is height / width here, width / height in the crop.
        widths, heights = area_boxes(box[:-2], area, AREA_RANGE, ASPECT_RANGE)
        fits = (heights < height) & (widths < width)
        first = jnp.argmax(fits)
        used = fits.any() & (number < wanted)
        box_h = jnp.where(used, heights[first], 0)
        box_w = jnp.where(used, widths[first], 0)
        top = random_bits.integer(box[-2], height - box_h)
        left = random_bits.integer(box[-1], width - box_w)
        return jnp.stack([top, left, box_h, box_w])

    return jax.vmap(one_box)(boxes, jnp.arange(len(boxes)))


def _mixed_bits(bits: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every input bit moves every output bit ("lowbias32")."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def pixel_noise(word: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0, 1) float32 of `shape` from a hash of (uint32 [2], position).

    Threefry for every pixel of every image would cost more than the rest of the
    augmentation; a hash is cheap, fuses with what uses it and is as portable.
    """
    position = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return random_bits.normal(_mixed_bits(_mixed_bits(position ^ word[0]) + word[1]))


def random_erasing(
    keys: jax.Array, image: jax.Array, *, prob: float, mode: str, max_count: int
) -> jax.Array:
    """Normalised images float32 [n, h, w, 3] with random boxes replaced, one key per image.

    mode 'pixel': N(0, 1) noise per pixel and channel; 'rand': one N(0, 1) colour
    per box; 'const': zero.
    """
    if prob == 0:
        return image
    n, height, width, channels = image.shape
    row = jnp.arange(height)[None, :, None, None]
    column = jnp.arange(width)[None, None, :, None]
    words = random_bits.words(keys, 2 + (BOX_WORDS + NOISE_WORDS) * max_count)
    words, noise = jnp.split(words, [2 + BOX_WORDS * max_count], axis=1)
    noise = noise.reshape(n, max_count, NOISE_WORDS)
    boxes = jax.vmap(lambda word: erase_boxes(word, height, width, prob))(words)
    for number in range(max_count):
        top, left, box_h, box_w = (boxes[:, number, i, None, None, None] for i in range(4))
        inside = (row >= top) & (row < top + box_h) & (column >= left) & (column < left + box_w)
        word = noise[:, number]
        if mode == "pixel":
            fill = jax.vmap(lambda word: pixel_noise(word, (height, width, channels)))(word)
        elif mode == "rand":
            fill = random_bits.normal(word[:, None, None, :channels])
        else:
            fill = jnp.zeros((n, 1, 1, channels), image.dtype)
        image = jnp.where(inside, fill, image)
    return image
