"""Random erasing (arXiv 1708.04896) as timm's `RandomErasing` does it, after normalisation."""

import math

import jax
import jax.numpy as jnp

from deit_jax.augment.crop import random_area_box, uniform_int

ERASING_MODES = ("pixel", "rand", "const")
AREA_RANGE = (0.02, 1 / 3)
ASPECT_RANGE = (0.3, 1 / 0.3)


def erase_boxes(key: jax.Array, height: int, width: int, prob: float, max_count: int) -> jax.Array:
    """Boxes int32 [max_count, 4] (top, left, height, width) of one image; unused ones are empty.

    With `prob`, 1..max_count boxes whose areas are drawn from 2 % to a third of
    the image divided by their number; ten tries for a box strictly smaller than
    the image, else none.
    """
    prob_key, count_key, boxes_key = jax.random.split(key, 3)
    count = 1 + uniform_int(count_key, jnp.int32(max_count - 1))
    wanted = jnp.where(jax.random.uniform(prob_key) < prob, count, 0)

    def one_box(box_key: jax.Array, number: jax.Array) -> jax.Array:
        size_key, top_key, left_key = jax.random.split(box_key, 3)
        area = jnp.float32(height * width) / count
        # The aspect is height / width here, width / height in the crop.
        widths, heights = random_area_box(size_key, area, AREA_RANGE, ASPECT_RANGE)
        fits = (heights < height) & (widths < width)
        first = jnp.argmax(fits)
        used = fits.any() & (number < wanted)
        box_h = jnp.where(used, heights[first], 0)
        box_w = jnp.where(used, widths[first], 0)
        top = uniform_int(top_key, height - box_h)
        left = uniform_int(left_key, width - box_w)
        return jnp.stack([top, left, box_h, box_w])

    return jax.vmap(one_box)(jax.random.split(boxes_key, max_count), jnp.arange(max_count))


def _mixed_bits(bits: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every input bit moves every output bit ("lowbias32")."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def pixel_noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """N(0, 1) float32 of `shape` from a hash of (key, position).

    Threefry for every pixel of every image would cost more than the rest of the
    augmentation; a hash is cheap, fuses with what uses it and is as portable.
    """
    words = jax.random.bits(key, (2,))
    position = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    bits = _mixed_bits(_mixed_bits(position ^ words[0]) + words[1])
    # 23 bits in (0, 1), never 0 or 1.
    unit = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return jnp.float32(math.sqrt(2.0)) * jax.lax.erf_inv(2.0 * unit - 1.0)


def random_erasing(
    keys: jax.Array, image: jax.Array, *, prob: float, mode: str = "pixel", max_count: int = 1
) -> jax.Array:
    """Normalised images float32 [n, h, w, 3] with random boxes replaced, one key per image.

    mode 'pixel': N(0, 1) noise per pixel and channel; 'rand': one N(0, 1) colour
    per box; 'const': zero.
    """
    if mode not in ERASING_MODES:
        raise ValueError(f"unknown erasing_mode {mode!r}; known: {', '.join(ERASING_MODES)}")
    n, height, width, channels = image.shape
    row = jnp.arange(height)[None, :, None, None]
    column = jnp.arange(width)[None, None, :, None]
    box_keys, noise_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    boxes = jax.vmap(lambda key: erase_boxes(key, height, width, prob, max_count))(box_keys)
    for number in range(max_count):
        top, left, box_h, box_w = (boxes[:, number, i, None, None, None] for i in range(4))
        inside = (row >= top) & (row < top + box_h) & (column >= left) & (column < left + box_w)
        fill_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(noise_keys, number)
        if mode == "pixel":
            fill = jax.vmap(lambda key: pixel_noise(key, (height, width, channels)))(fill_keys)
        elif mode == "rand":
            fill = jax.vmap(lambda key: jax.random.normal(key, (1, 1, channels)))(fill_keys)
        else:
            fill = jnp.zeros((n, 1, 1, channels), image.dtype)
        image = jnp.where(inside, fill, image)
    return image
