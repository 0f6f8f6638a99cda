"""Levels to the numbers that a model sees."""

import jax
import jax.numpy as jnp

from deit_jax.augment.stage import PixelStage, Supplied
from deit_jax.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 [n, h, w, 3] to float32: (image / 255 - mean) / std."""
    center, scale = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (mean, std))
    return (image.astype(jnp.float32) / 255.0 - center) / scale


def fill_color(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """What timm fills the outside of a warped image with: the mean as uint8 levels."""
    red, green, blue = (min(255, round(255 * x)) for x in mean)
    return red, green, blue


def make_normalize(
    supplied: Supplied,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> PixelStage:
    """Levels from 0 to 1, minus the mean, divided by the deviation."""
    if not 0 <= min(mean) <= max(mean) <= 1:
        raise ConfigError(f"mean must be 3 numbers from 0 to 1, of levels from 0 to 1, not {mean}")
    if not 0 < min(std) <= max(std) <= 1:
        raise ConfigError(f"std must be 3 numbers above 0, at most 1, not {std}")
    return lambda draw, pixels: normalize(pixels, mean, std)
