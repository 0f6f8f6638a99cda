"""Operations of the augmentation policies: their arguments by magnitude, and doing them.

`OPERATIONS` is the registry. Which operations a policy draws from is the policy's own list of
names (timm's fifteen are `RAND_AUGMENT_OPERATIONS`), and an operation's number is its place in
that list: an operation that is added here changes no policy that does not name it.

Arguments follow timm's `auto_augment.py`, pixels follow Pillow. The pointwise operations of a
policy are numbers of one pass over all images; each image that drew one of the others is routed
to it.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import builders
from deit_jax.augment import color, geometry, random_bits
from deit_jax.augment.routing import Route, apply_routes

# Magnitudes are tenths of the strongest argument.
LEVEL_DENOMINATOR = 10.0

# How many bits a posterized image keeps, (at magnitude 0, change up to magnitude 10), by
# timm's names: "" is TPU EfficientNet's, "Original" the AutoAugment paper's.
POSTERIZE_BITS = {"": (0, 4), "Increasing": (4, -4), "Original": (4, 4)}


class Level(NamedTuple):
    """A magnitude as operations read it.

    Attributes:
      level: float32, the magnitude / 10.
      signed: float32, the level with a random sign.
      increasing: timm's set whose effect grows with the magnitude.
      posterize: a key of POSTERIZE_BITS.
    """

    level: jax.Array
    signed: jax.Array
    increasing: bool
    posterize: str


class Operation(NamedTuple):
    """One operation, pointwise or on the pixels of the images that drew it.

    Attributes:
      argument: from a `Level` to float32 of its shape; None for an operation without one.
      pointwise: from arguments float32 [n] to fields of `color.Pointwise`, each [n].
      pixels: (pixels uint8 [m, s, s, 3], argument float32 [m]) -> pixels; it may have a
        keyword-only parameter `fill`, the color outside of the image as three levels.
      kind: for a function of `pixels` that does several operations in one pass: which one,
        passed as int32 [m] before the argument.
    """

    argument: Callable[[Level], jax.Array] | None = None
    pointwise: Callable[[jax.Array], dict[str, jax.Array]] | None = None
    pixels: Callable[..., jax.Array] | None = None
    kind: int | None = None


def _degrees(magnitude: Level) -> jax.Array:
    return 30.0 * magnitude.signed


def _bits(magnitude: Level) -> jax.Array:
    first, change = POSTERIZE_BITS[magnitude.posterize]
    return first + math.copysign(1, change) * jnp.floor(magnitude.level * abs(change))


def _threshold(magnitude: Level) -> jax.Array:
    threshold = jnp.minimum(256.0, jnp.floor(magnitude.level * 256))
    return 256.0 - threshold if magnitude.increasing else threshold


def _addend(magnitude: Level) -> jax.Array:
    return jnp.minimum(128.0, jnp.floor(magnitude.level * 110))


def _factor(magnitude: Level) -> jax.Array:
    if magnitude.increasing:
        return jnp.maximum(0.1, 1.0 + 0.9 * magnitude.signed)
    return magnitude.level * 1.8 + 0.1


def _slope(magnitude: Level) -> jax.Array:
    return 0.3 * magnitude.signed


def _share(magnitude: Level) -> jax.Array:
    return 0.45 * magnitude.signed


def _invert(value: jax.Array) -> dict[str, jax.Array]:
    return {"threshold": jnp.zeros(value.shape, jnp.int32)}


def _posterize(bits: jax.Array) -> dict[str, jax.Array]:
    # Of 0 bits or fewer nothing is left: black, as Pillow < 13 has it.
    mask = (jnp.int32(255) << (8 - jnp.clip(bits.astype(jnp.int32), 0, 8))) & 255
    return {"mask": mask.astype(jnp.uint8)}


def _solarize(threshold: jax.Array) -> dict[str, jax.Array]:
    return {"threshold": threshold.astype(jnp.int32)}


def _solarize_add(addend: jax.Array) -> dict[str, jax.Array]:
    return {"add": addend.astype(jnp.int32)}


def _blend_with(base: int, factor: jax.Array) -> dict[str, jax.Array]:
    return {"base": jnp.full(factor.shape, base, jnp.int32), "factor": factor}


def _blend(base: int) -> Operation:
    return Operation(_factor, pointwise=functools.partial(_blend_with, base))


OPERATIONS = {
    "AutoContrast": Operation(pixels=color.histogram_operation, kind=color.AUTO_CONTRAST),
    "Equalize": Operation(pixels=color.histogram_operation, kind=color.EQUALIZE),
    "Invert": Operation(pointwise=_invert),
    "Rotate": Operation(_degrees, pixels=geometry.rotate),
    "Posterize": Operation(_bits, pointwise=_posterize),
    "Solarize": Operation(_threshold, pointwise=_solarize),
    "SolarizeAdd": Operation(_addend, pointwise=_solarize_add),
    "Color": _blend(color.GRAY),
    "Contrast": _blend(color.MEAN),
    "Brightness": _blend(color.BLACK),
    "Sharpness": Operation(_factor, pixels=color.sharpness),
    "ShearX": Operation(_slope, pixels=geometry.move_lines, kind=geometry.SHEAR_X),
    "ShearY": Operation(_slope, pixels=geometry.move_lines, kind=geometry.SHEAR_Y),
    "TranslateXRel": Operation(_share, pixels=geometry.move_lines, kind=geometry.TRANSLATE_X),
    "TranslateYRel": Operation(_share, pixels=geometry.move_lines, kind=geometry.TRANSLATE_Y),
}

# timm's, in timm's order, which the draws of the published policies follow.
RAND_AUGMENT_OPERATIONS = (
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
    names: Sequence[str],
    operation: jax.Array,
    magnitude: jax.Array,
    negate: jax.Array,
    *,
    increasing: bool,
    posterize: str,
) -> jax.Array:
    """timm's LEVEL_TO_ARG, float32: degrees, slope, share, bits, threshold, addend or factor.

    Args:
      names: the operations that the numbers in `operation` (int32) stand for.
      negate: the coin of the operations with a sign.
      increasing, posterize: see `Level`.
    """
    level = magnitude / LEVEL_DENOMINATOR
    of = Level(level, jnp.where(negate, -level, level), increasing, posterize)
    members: dict[Callable, list[int]] = {}
    for number, name in enumerate(names):
        if (of_magnitude := OPERATIONS[name].argument) is not None:
            members.setdefault(of_magnitude, []).append(number)
    value = jnp.zeros_like(level)
    for of_level, numbers in members.items():
        value = jnp.where(_is_one_of(operation, numbers), of_level(of), value)
    return value


def pointwise_numbers(
    names: Sequence[str], operation: jax.Array, value: jax.Array
) -> color.Pointwise:
    """The pointwise pass for operation int32 [n] with arguments float32 [n]."""
    numbers = color.neutral(len(operation))
    for number, name in enumerate(names):
        if (fields_of := OPERATIONS[name].pointwise) is not None:
            fields = fields_of(value)
            chosen = {
                field: jnp.where(operation == number, of_value, getattr(numbers, field))
                for field, of_value in fields.items()
            }
            numbers = numbers._replace(**chosen)
    return numbers


def _routes(
    names: Sequence[str],
    operation: jax.Array,
    value: jax.Array,
    shares: np.ndarray,
    fill: tuple[int, int, int],
) -> list[Route]:
    """One route for each function of pixels among the operations that are drawn at all."""
    members: dict[Callable, list[int]] = {}
    for number, name in enumerate(names):
        if (function := OPERATIONS[name].pixels) is not None:
            members.setdefault(function, []).append(number)
    routes = []
    for function, numbers in members.items():
        kinds = [OPERATIONS[names[i]].kind for i in numbers]
        arguments = [value]
        if None not in kinds:
            kind = jnp.zeros_like(operation)
            for i, of_member in zip(numbers, kinds, strict=True):
                kind = jnp.where(operation == i, of_member or 0, kind)
            arguments = [kind, value]
        route = Route(
            member=_is_one_of(operation, numbers),
            share=float(shares[..., numbers].sum(-1).max()),
            operation=builders.bind(function, {"fill": fill}),
            arguments=tuple(arguments),
        )
        if route.share > 0:
            routes.append(route)
    return routes


def apply_layer(
    pixels: jax.Array,
    operation: jax.Array,
    value: jax.Array,
    *,
    names: Sequence[str],
    shares: np.ndarray,
    fill: tuple[int, int, int],
) -> jax.Array:
    """One operation per image: uint8 [n, s, s, 3], int32 [n], float32 [n] to uint8.

    Args:
      names: the operations that the numbers stand for; any other number does nothing.
      shares: [..., len(names)], the share of the images that get each operation, for each of
        the layers that this program serves; what has none in all of them is left out.
      fill: color outside of a moved image, three levels.
    """
    pixels = color.pointwise(pixels, pointwise_numbers(names, operation, value))
    return apply_routes(pixels, _routes(names, operation, value, shares, fill))


def apply_layers(
    pixels: jax.Array, operations: jax.Array, values: jax.Array, **options: Any
) -> jax.Array:
    """Layer after layer of uint8 [n, s, s, 3], int32 and float32 [n, layers]; uint8 between.

    The options are those of `apply_layer`.
    """

    def layer(pixels: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return apply_layer(pixels, *drawn, **options), None

    return jax.lax.scan(layer, pixels, (operations.T, values.T))[0]
