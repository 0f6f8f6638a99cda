"""Random erasing (arXiv 1708.04896) as timm's `RandomErasing` does it, after normalization."""

import math

import jax
import jax.numpy as jnp

from deit_jax import builders
from deit_jax.augment import random_bits
from deit_jax.augment.crop import CROP_TRIES, area_boxes
from deit_jax.augment.stage import Draw, PixelStage, Supplied, check_share
from deit_jax.errors import ConfigError, check_at_most

AREA_RANGE = (0.02, 1 / 3)
ASPECT_RANGE = (0.3, 1 / 0.3)
BOX_WORDS = 2 * CROP_TRIES + 2
NOISE_WORDS = 3


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


def noise_per_pixel(word: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0, 1) noise for every pixel and channel.

    It is a hash of (uint32 [2], position): threefry for every pixel of every image would cost
    more than the rest of the augmentation; a hash is cheap, fuses with what uses it and is as
    portable.
    """
    position = jnp.arange(math.prod(shape[1:]), dtype=jnp.uint32).reshape(shape[1:])
    noise = lambda word: _mixed_bits(_mixed_bits(position ^ word[0]) + word[1])
    return random_bits.normal(jax.vmap(noise)(word))


def noise_per_box(word: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One N(0, 1) color per box."""
    return random_bits.normal(word[:, None, None, : shape[3]])


def zeros(word: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Zeros, the mean of the normalization."""
    return jnp.zeros((shape[0], 1, 1, shape[3]), jnp.float32)


# What fills the boxes: (random words uint32 [n, 3], shape of the images [n, h, w, 3]) ->
# float32 that broadcasts to that shape.
ERASING_MODES = {"pixel": noise_per_pixel, "rand": noise_per_box, "const": zeros}


@builders.chooses(erasing_mode=ERASING_MODES)
def make_erasing(
    supplied: Supplied,
    *,
    erasing_prob: float = 0.25,
    erasing_mode: str = "pixel",
    erasing_count: int = 1,
) -> PixelStage | None:
    """Random erasing: boxes of 2 % to 33 % of the area, aspect 0.3 to 3.3.

    Args:
      erasing_prob: of an image to be erased.
      erasing_mode: what fills the boxes, a name of `ERASING_MODES`.
      erasing_count: the largest number of boxes, which share the area.
    """
    check_share(erasing_prob=erasing_prob)
    if erasing_count < 1:
        raise ConfigError(
            f"erasing_count must be at least 1 (erasing_prob=0 is off), not {erasing_count}"
        )
    check_at_most(100, erasing_count=erasing_count)
    fill = builders.choose(ERASING_MODES, erasing_mode, "erasing_mode")
    if erasing_prob == 0:
        return None

    def erased(draw: Draw, image: jax.Array) -> jax.Array:
        n, height, width, _ = image.shape
        row = jnp.arange(height)[None, :, None, None]
        column = jnp.arange(width)[None, None, :, None]
        words = random_bits.words(draw("erasing"), 2 + (BOX_WORDS + NOISE_WORDS) * erasing_count)
        words, noise = jnp.split(words, [2 + BOX_WORDS * erasing_count], axis=1)
        noise = noise.reshape(n, erasing_count, NOISE_WORDS)
        boxes = jax.vmap(lambda word: erase_boxes(word, height, width, erasing_prob))(words)
        for number in range(erasing_count):
            top, left, box_h, box_w = (boxes[:, number, i, None, None, None] for i in range(4))
            inside = (row >= top) & (row < top + box_h) & (column >= left) & (column < left + box_w)
            image = jnp.where(inside, fill(noise[:, number], image.shape), image)
        return image

    return erased
