"""RandAugment (arXiv 1909.13719) as timm's `rand-mX-...` strings define it."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment import random_bits
from deit_jax.augment.operations import (
    LEVEL_DENOMINATOR,
    NOTHING,
    OPERATIONS,
    argument,
    noisy_magnitude,
)
from deit_jax.errors import ConfigError, unknown

# timm's `tweights`: drawn without replacement.
WEIGHTS = {
    "Rotate": 3.0,
    "ShearX": 2.0,
    "ShearY": 2.0,
    "TranslateXRel": 1.0,
    "TranslateYRel": 1.0,
    "Color": 0.25,
    "Sharpness": 0.25,
    "AutoContrast": 0.25,
    "Solarize": 0.05,
    "SolarizeAdd": 0.05,
    "Contrast": 0.05,
    "Brightness": 0.05,
    "Equalize": 0.05,
    "Posterize": 0.05,
    "Invert": 0.05,
}


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
    def posterize(self) -> str:
        """Key of `operations.POSTERIZE_BITS`."""
        return "Increasing" if self.increasing else ""

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [15]: how often each operation is drawn."""
        if not self.weighted:
            return np.full(len(OPERATIONS), 1.0 / len(OPERATIONS))
        weights = np.array([WEIGHTS[name] for name in OPERATIONS])
        return weights / weights.sum()

    @property
    def shares(self) -> np.ndarray:
        """float64 [layers, 15]: how often each operation is applied (weighted: in the first)."""
        return np.tile(self.prob * self.probabilities, (self.layers, 1))


def _section(section: str) -> tuple[str, int | float | bool]:
    """Field of `RandAugmentSpec` and value of one section of the string."""
    if section == "tweights":
        return "weighted", True
    match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?|inf)", section)
    if match is None:
        raise unknown(
            "RandAugment section",
            section,
            ["m9", "n2", "p0.5", "mstd0.5", "mmax10", "inc1", "tweights"],
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
            f"RandAugment {config!r} must begin with 'rand', such as 'rand-m9-mstd0.5-inc1'"
        )
    fields = dict(_section(section) for section in sections)
    spec = RandAugmentSpec(**fields)
    if spec.weighted and spec.layers > len(OPERATIONS):
        raise ConfigError(f"RandAugment {config!r} draws {spec.layers} of 15 without replacement")
    return spec


def draw(keys: jax.Array, spec: RandAugmentSpec) -> tuple[jax.Array, jax.Array]:
    """Operations int32 [n, layers] (NOTHING where not applied), arguments float32 [n, layers]."""
    count, layers = len(OPERATIONS), spec.layers
    words = random_bits.words(keys, (count if spec.weighted else layers) + 3 * layers)
    choice, rest = words[:, : -3 * layers], words[:, -3 * layers :]
    applied, magnitude, sign = jnp.split(rest, 3, axis=1)
    if spec.weighted:
        # The largest of log-shares with Gumbel noise are a draw without replacement.
        log_shares = jnp.log(jnp.asarray(spec.probabilities, jnp.float32))[None]
        gumbel = -jnp.log(-jnp.log(random_bits.between(choice, 2.0**-25, 1.0)))
        operations = jax.lax.top_k(log_shares + gumbel, layers)[1].astype(jnp.int32)
    else:
        operations = random_bits.integer(choice, jnp.int32(count - 1))
    operations = jnp.where(random_bits.chance(applied, spec.prob), operations, NOTHING)
    magnitude = noisy_magnitude(
        magnitude, spec.magnitude, std=spec.magnitude_std, maximum=spec.magnitude_max
    )
    return operations, argument(
        operations, magnitude, sign >> 31 == 1, increasing=spec.increasing, posterize=spec.posterize
    )
