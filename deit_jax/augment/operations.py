"""Operations of the augmentation policies: their arguments by magnitude, and applying them.

`OPERATIONS` is the registry. A policy draws from its own list of names (timm's fifteen are
`RAND_AUGMENT_OPERATIONS`), and an operation's number is its place in that list: an operation
that is added here changes no policy that does not name it.

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
from deit_jax.augment import color, geometry
from deit_jax.augment.routing import Route, apply_routes

# Magnitudes are tenths of the strongest argument.
LEVEL_DENOMINATOR = 10.0

# How many bits a posterized image keeps, (at magnitude 0, change up to magnitude 10), by
# timm's names: "" is TPU EfficientNet's, "Original" the AutoAugment paper's.
POSTERIZE_BITS = {"": (0, 4), "Increasing": (4, -4), "Original": (4, 4)}


class Level(NamedTuple):
    """A magnitude as operations read it."""

    level: jax.Array  # float32, the magnitude / 10
    signed: jax.Array  # float32, the level with a random sign
    increasing: bool  # timm's set whose effect grows with the magnitude
    posterize: str  # a key of POSTERIZE_BITS


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


_addend = lambda at: jnp.minimum(128.0, jnp.floor(at.level * 110))
_slope = lambda at: 0.3 * at.signed
_share = lambda at: 0.45 * at.signed


def _bits(at: Level) -> jax.Array:
    first, change = POSTERIZE_BITS[at.posterize]
    return first + math.copysign(1, change) * jnp.floor(at.level * abs(change))


def _threshold(at: Level) -> jax.Array:
    threshold = jnp.minimum(256.0, jnp.floor(at.level * 256))
    return 256.0 - threshold if at.increasing else threshold


def _factor(at: Level) -> jax.Array:
    return jnp.maximum(0.1, 1.0 + 0.9 * at.signed) if at.increasing else at.level * 1.8 + 0.1


def _posterize(bits: jax.Array) -> dict[str, jax.Array]:
    # Of 0 bits or fewer nothing is left: black, as Pillow < 13 has it.
    mask = (jnp.int32(255) << (8 - jnp.clip(bits.astype(jnp.int32), 0, 8))) & 255
    return {"mask": mask.astype(jnp.uint8)}


def _blend(base: int) -> Operation:
    def fields(factor: jax.Array) -> dict[str, jax.Array]:
        return {"base": jnp.full(factor.shape, base, jnp.int32), "factor": factor}

    return Operation(_factor, pointwise=fields)


OPERATIONS = {
    "AutoContrast": Operation(pixels=color.histogram_operation, kind=color.AUTO_CONTRAST),
    "Equalize": Operation(pixels=color.histogram_operation, kind=color.EQUALIZE),
    "Invert": Operation(pointwise=lambda x: {"threshold": jnp.zeros(x.shape, jnp.int32)}),
    "Rotate": Operation(lambda at: 30.0 * at.signed, pixels=geometry.rotate),
    "Posterize": Operation(_bits, pointwise=_posterize),
    "Solarize": Operation(_threshold, pointwise=lambda x: {"threshold": x.astype(jnp.int32)}),
    "SolarizeAdd": Operation(_addend, pointwise=lambda x: {"add": x.astype(jnp.int32)}),
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
RAND_AUGMENT_OPERATIONS = tuple(
    "AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast "
    "Brightness Sharpness ShearX ShearY TranslateXRel TranslateYRel".split()
)


def _members(names: Sequence[str], field: str) -> dict[Callable, list[int]]:
    """The numbers of the operations that share each function in a field of `Operation`."""
    members = {}
    for number, name in enumerate(names):
        if (function := getattr(OPERATIONS[name], field)) is not None:
            members.setdefault(function, []).append(number)
    return members


def _is_one_of(operation: jax.Array, members: Iterable[int]) -> jax.Array:
    return functools.reduce(jnp.logical_or, [operation == i for i in members])


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
    at = Level(level, jnp.where(negate, -level, level), increasing, posterize)
    value = jnp.zeros_like(level)
    for of_level, numbers in _members(names, "argument").items():
        value = jnp.where(_is_one_of(operation, numbers), of_level(at), value)
    return value


def pointwise_numbers(
    names: Sequence[str], operation: jax.Array, value: jax.Array
) -> color.Pointwise:
    """The pointwise pass for operation int32 [n] with arguments float32 [n]."""
    numbers = color.neutral(len(operation))
    for number, name in enumerate(names):
        if (fields_of := OPERATIONS[name].pointwise) is not None:
            for field, own in fields_of(value).items():
                chosen = jnp.where(operation == number, own, getattr(numbers, field))
                numbers = numbers._replace(**{field: chosen})
    return numbers


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
    routes = []
    for function, numbers in _members(names, "pixels").items():
        arguments = [value]
        kinds = [OPERATIONS[names[i]].kind for i in numbers]
        if None not in kinds:
            kind = jnp.zeros_like(operation)
            for i, own in zip(numbers, kinds, strict=True):
                kind = jnp.where(operation == i, own or 0, kind)
            arguments = [kind, value]
        share = float(shares[..., numbers].sum(-1).max())
        if share > 0:
            member = _is_one_of(operation, numbers)
            function = builders.bind(function, {"fill": fill})
            routes.append(Route(member, share, function, tuple(arguments)))
    return apply_routes(pixels, routes)


def apply_layers(
    pixels: jax.Array, operations: jax.Array, values: jax.Array, **options: Any
) -> jax.Array:
    """`apply_layer` for each layer of int32 and float32 [n, layers]; uint8 in between."""

    def layer(pixels: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return apply_layer(pixels, *drawn, **options), None

    return jax.lax.scan(layer, pixels, (operations.T, values.T))[0]
