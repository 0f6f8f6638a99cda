"""timm's fifteen augmentation operations: their arguments by magnitude, and doing them.

Arguments follow timm's `auto_augment.py`, pixels follow Pillow. Seven of the
operations are numbers of one pointwise pass, and each image of the others is
routed to the one it drew. Which one that is, `randaugment.py` and `autoaugment.py`
say.
"""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment import color, geometry, random_bits
from deit_jax.augment.routing import Route, apply_routes

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
(
    AUTO_CONTRAST,
    EQUALIZE,
    INVERT,
    ROTATE,
    POSTERIZE,
    SOLARIZE,
    SOLARIZE_ADD,
    COLOR,
    CONTRAST,
    BRIGHTNESS,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y,
    NOTHING,
) = range(16)

# Magnitudes are tenths of the strongest argument.
LEVEL_DENOMINATOR = 10.0

# How many bits a posterized image keeps, (at magnitude 0, change up to magnitude 10), by
# timm's names: "" is TPU EfficientNet's, "Original" the AutoAugment paper's.
POSTERIZE_BITS = {"": (0, 4), "Increasing": (4, -4), "Original": (4, 4)}


def _is_one_of(operation: jax.Array, members: Iterable[int]) -> jax.Array:
    return functools.reduce(jnp.logical_or, [operation == i for i in members])


def noisy_magnitude(
    word: jax.Array, magnitude: jax.Array | float, *, std: float, maximum: float
) -> jax.Array:
    """float32: the magnitude with its noise from uint32, clipped to 0..maximum.

    std: of the normal noise; inf draws uniformly between 0 and the magnitude.
    """
    if math.isinf(std):
        magnitude = random_bits.unit(word) * magnitude
    else:
        magnitude = magnitude + std * random_bits.normal(word)
    return jnp.clip(magnitude, 0.0, maximum)


def argument(
    operation: jax.Array,
    magnitude: jax.Array,
    negate: jax.Array,
    *,
    increasing: bool,
    posterize: str,
) -> jax.Array:
    """timm's LEVEL_TO_ARG, float32: degrees, slope, share, bits, threshold, addend or factor.

    negate: the coin of the operations with a sign. increasing: timm's set whose effect
    grows with the magnitude. posterize: a key of POSTERIZE_BITS.
    """
    level = magnitude / LEVEL_DENOMINATOR
    signed = jnp.where(negate, -level, level)
    first, change = POSTERIZE_BITS[posterize]
    bits = first + math.copysign(1, change) * jnp.floor(level * abs(change))
    threshold = jnp.minimum(256.0, jnp.floor(level * 256))
    add = jnp.minimum(128.0, jnp.floor(level * 110))
    if increasing:
        threshold = 256.0 - threshold
        factor = jnp.maximum(0.1, 1.0 + 0.9 * signed)
    else:
        factor = level * 1.8 + 0.1
    groups = [
        ((ROTATE,), 30.0 * signed),
        ((POSTERIZE,), bits),
        ((SOLARIZE,), threshold),
        ((SOLARIZE_ADD,), add),
        ((COLOR, CONTRAST, BRIGHTNESS, SHARPNESS), factor),
        ((SHEAR_X, SHEAR_Y), 0.3 * signed),
        ((TRANSLATE_X, TRANSLATE_Y), 0.45 * signed),
    ]
    value = jnp.zeros_like(level)
    for members, of_level in groups:
        value = jnp.where(_is_one_of(operation, members), of_level, value)
    return value


def _pointwise_numbers(operation: jax.Array, value: jax.Array) -> color.Pointwise:
    """The pointwise pass for operation int32 [n] with arguments float32 [n]."""
    whole = value.astype(jnp.int32)
    # Of 0 bits or fewer nothing is left: black, as Pillow < 13 has it.
    mask = (jnp.int32(255) << (8 - jnp.clip(whole, 0, 8))) & 255
    blends = {COLOR: color.GRAY, CONTRAST: color.MEAN, BRIGHTNESS: color.BLACK}
    numbers = color.neutral(len(operation))
    is_blend = _is_one_of(operation, blends)
    base = sum(jnp.where(operation == i, kind, 0) for i, kind in blends.items())
    threshold = jnp.where(operation == SOLARIZE, whole, numbers.threshold)
    return color.Pointwise(
        mask=jnp.where(operation == POSTERIZE, mask.astype(jnp.uint8), numbers.mask),
        threshold=jnp.where(operation == INVERT, 0, threshold),
        add=jnp.where(operation == SOLARIZE_ADD, whole, numbers.add),
        base=base,
        factor=jnp.where(is_blend, value, numbers.factor),
    )


def apply_layer(
    pixels: jax.Array,
    operation: jax.Array,
    value: jax.Array,
    *,
    shares: np.ndarray,
    fill: tuple[int, int, int],
) -> jax.Array:
    """One operation per image: uint8 [n, s, s, 3], int32 [n], float32 [n] to uint8.

    shares: [..., 15], the share of the images that get each operation, for each of the
    layers that this program serves; what has none in all of them is left out.
    """
    lines = {
        SHEAR_X: geometry.SHEAR_X,
        SHEAR_Y: geometry.SHEAR_Y,
        TRANSLATE_X: geometry.TRANSLATE_X,
        TRANSLATE_Y: geometry.TRANSLATE_Y,
    }
    kind = sum(jnp.where(operation == i, line, 0) for i, line in lines.items())
    routed = [
        ((AUTO_CONTRAST, EQUALIZE), color.histogram_operation, (operation == EQUALIZE,)),
        ((SHARPNESS,), color.sharpness, (value,)),
        ((ROTATE,), functools.partial(geometry.rotate, fill=fill), (value,)),
        (tuple(lines), functools.partial(geometry.move_lines, fill=fill), (kind, value)),
    ]
    routes = [
        Route(
            member=_is_one_of(operation, members),
            share=float(shares[..., list(members)].sum(-1).max()),
            operation=function,
            arguments=arguments,
        )
        for members, function, arguments in routed
    ]
    routes = [route for route in routes if route.share > 0]
    return apply_routes(color.pointwise(pixels, _pointwise_numbers(operation, value)), routes)


def apply_layers(
    pixels: jax.Array,
    operations: jax.Array,
    values: jax.Array,
    *,
    shares: np.ndarray,
    fill: tuple[int, int, int],
) -> jax.Array:
    """Layer after layer of uint8 [n, s, s, 3], int32 and float32 [n, layers]; uint8 between."""

    def layer(pixels: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return apply_layer(pixels, *drawn, shares=shares, fill=fill), None

    return jax.lax.scan(layer, pixels, (operations.T, values.T))[0]
