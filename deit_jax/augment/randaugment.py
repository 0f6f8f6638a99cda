"""RandAugment (arXiv 1909.13719) as timm's `rand-mX-...` strings define it.

Operations and their arguments follow timm's `auto_augment.py`, pixels follow
Pillow. Of the fifteen operations seven are numbers of one pointwise pass, and
each image of the others is routed to the one it drew.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment import color, draws, geometry
from deit_jax.augment.routing import Route, apply_routes
from deit_jax.errors import ConfigError, unknown

OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd",
    "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel",
    "TranslateYRel",
)  # fmt: skip
(
    AUTO_CONTRAST, EQUALIZE, INVERT, ROTATE, POSTERIZE, SOLARIZE, SOLARIZE_ADD,
    COLOR, CONTRAST, BRIGHTNESS, SHARPNESS, SHEAR_X, SHEAR_Y, TRANSLATE_X,
    TRANSLATE_Y, NOTHING,
) = range(16)  # fmt: skip

# timm's `tweights`: drawn without replacement.
WEIGHTS = {
    "Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateXRel": 1.0, "TranslateYRel": 1.0,
    "Color": 0.25, "Sharpness": 0.25, "AutoContrast": 0.25, "Solarize": 0.05,
    "SolarizeAdd": 0.05, "Contrast": 0.05, "Brightness": 0.05, "Equalize": 0.05,
    "Posterize": 0.05, "Invert": 0.05,
}  # fmt: skip

LEVEL_DENOMINATOR = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugmentSpec:
    """What a `rand-...` string says; the defaults are timm's for a string that does not."""

    magnitude: int = 10
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0  # inf: uniform between 0 and the magnitude
    magnitude_max: float = LEVEL_DENOMINATOR
    increasing: bool = False
    weighted: bool = False

    @property
    def shares(self) -> np.ndarray:
        """float64 [15]: how often each operation is drawn."""
        if not self.weighted:
            return np.full(len(OPERATIONS), 1.0 / len(OPERATIONS))
        weights = np.array([WEIGHTS[name] for name in OPERATIONS])
        return weights / weights.sum()


def _section(section: str) -> tuple[str, int | float | bool]:
    """Field of `RandAugmentSpec` and value of one section of the string."""
    if section == "tweights":
        return "weighted", True
    match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)", section)
    if match is None:
        raise unknown(
            "RandAugment section", section, ["m9", "n2", "p0.5", "mstd0.5", "mmax10", "inc1", "tweights"]
        )
    key, text = match.groups()
    if key in ("m", "n", "mmax", "inc") and not text.isdigit():
        raise ConfigError(f"RandAugment section {section!r} needs a whole number, such as {key}1")
    number = float(text)
    if key == "mstd":
        return "magnitude_std", math.inf if number > 100 else number
    if key == "p":
        if not number <= 1:
            raise ConfigError(f"RandAugment section {section!r}: a probability is in [0, 1]")
        return "prob", number
    if key == "inc":
        return "increasing", bool(number)
    if key == "mmax":
        # timm reads 0 as "not given".
        return "magnitude_max", number or LEVEL_DENOMINATOR
    return {"m": "magnitude", "n": "layers"}[key], int(text)


def parse(config: str) -> RandAugmentSpec:
    """The meaning of e.g. 'rand-m9-mstd0.5-inc1' (timm `rand_augment_transform`).

    Sections: mX magnitude, nX layers, pX probability of a layer, mstdX noise of the
    magnitude (over 100: uniform), mmaxX its upper bound, inc1 the increasing set,
    tweights timm's weighted choice. Raises ValueError for anything else.
    """
    name, *sections = config.split("-")
    if name != "rand":
        raise ConfigError(
            f"randaugment {config!r} must begin with 'rand-', such as 'rand-m9-mstd0.5-inc1'; "
            "None switches it off"
        )
    fields = dict(_section(section) for section in sections)
    spec = RandAugmentSpec(**fields)
    if spec.weighted and spec.layers > len(OPERATIONS):
        raise ConfigError(f"randaugment {config!r} draws {spec.layers} of 15 without replacement")
    return spec


def _is_one_of(operation: jax.Array, members: Iterable[int]) -> jax.Array:
    return functools.reduce(jnp.logical_or, [operation == i for i in members])


def noisy_magnitude(word: jax.Array, spec: RandAugmentSpec) -> jax.Array:
    """float32: the magnitude with its noise from uint32, clipped to 0..magnitude_max."""
    if math.isinf(spec.magnitude_std):
        magnitude = draws.between(word, 0.0, spec.magnitude)
    else:
        magnitude = spec.magnitude + spec.magnitude_std * draws.normal(word)
    return jnp.clip(magnitude, 0.0, spec.magnitude_max)


def argument(
    operation: jax.Array, magnitude: jax.Array, negate: jax.Array, increasing: bool
) -> jax.Array:
    """timm's LEVEL_TO_ARG, float32: degrees, slope, share, bits, threshold, addend or factor."""
    level = magnitude / LEVEL_DENOMINATOR
    signed = jnp.where(negate, -level, level)
    bits = jnp.floor(level * 4)
    threshold = jnp.minimum(256.0, jnp.floor(level * 256))
    add = jnp.minimum(128.0, jnp.floor(level * 110))
    if increasing:
        bits, threshold = 4.0 - bits, 256.0 - threshold
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


def draw(keys: jax.Array, spec: RandAugmentSpec) -> tuple[jax.Array, jax.Array]:
    """Operations int32 [n, layers] (NOTHING where not applied), arguments float32 [n, layers]."""
    count, layers = len(OPERATIONS), spec.layers
    words = draws.words(keys, (count if spec.weighted else layers) + 3 * layers)
    choice, rest = words[:, : -3 * layers], words[:, -3 * layers :]
    applied, magnitude, sign = jnp.split(rest, 3, axis=1)
    if spec.weighted:
        # The largest of log-shares with Gumbel noise are a draw without replacement.
        log_shares = jnp.log(jnp.asarray(spec.shares, jnp.float32))[None]
        gumbel = -jnp.log(-jnp.log(draws.between(choice, 2.0**-25, 1.0)))
        operations = jax.lax.top_k(log_shares + gumbel, layers)[1].astype(jnp.int32)
    else:
        operations = draws.integer(choice, jnp.int32(count - 1))
    operations = jnp.where(draws.chance(applied, spec.prob), operations, NOTHING)
    magnitude = noisy_magnitude(magnitude, spec)
    return operations, argument(operations, magnitude, sign >> 31 == 1, spec.increasing)


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
    spec: RandAugmentSpec,
    fill: tuple[int, int, int],
) -> jax.Array:
    """One operation per image: uint8 [n, s, s, 3], int32 [n], float32 [n] to uint8."""
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
            share=float(sum(spec.shares[i] for i in members)) * spec.prob,
            operation=function,
            arguments=arguments,
        )
        for members, function, arguments in routed
    ]
    return apply_routes(color.pointwise(pixels, _pointwise_numbers(operation, value)), routes)


def randaugment(
    keys: jax.Array, pixels: jax.Array, *, spec: RandAugmentSpec, fill: tuple[int, int, int]
) -> jax.Array:
    """RandAugment of uint8 [n, s, s, 3], one key per image; uint8 between the layers, as in PIL."""
    operations, values = draw(keys, spec)

    def layer(pixels: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return apply_layer(pixels, *drawn, spec=spec, fill=fill), None

    return jax.lax.scan(layer, pixels, (operations.T, values.T))[0]
