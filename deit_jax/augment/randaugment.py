"""RandAugment (arXiv 1909.13719) as timm's `rand-mX-...` strings define it."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment import random_bits
from deit_jax.augment.operations import (
    LEVEL_DENOMINATOR,
    OPERATIONS,
    RAND_AUGMENT_OPERATIONS,
    argument,
    noisy_magnitude,
)
from deit_jax.builders import choose
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
class RandAugment:
    """A parsed `rand-...` string; the defaults are timm's for what a string leaves out."""

    magnitude: int = 10
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0  # inf: uniform between 0 and the magnitude
    magnitude_max: float = LEVEL_DENOMINATOR
    increasing: bool = False
    weighted: bool = False
    operations: tuple[str, ...] = RAND_AUGMENT_OPERATIONS

    @property
    def posterize(self) -> str:
        """Key of `operations.POSTERIZE_BITS`."""
        return "Increasing" if self.increasing else ""

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [operations]: how often each is drawn."""
        weights = [WEIGHTS[name] if self.weighted else 1.0 for name in self.operations]
        return np.array(weights) / sum(weights)

    @property
    def shares(self) -> np.ndarray:
        """float64 [layers, operations]: how often each is applied (weighted: in the first)."""
        return np.tile(self.prob * self.probabilities, (self.layers, 1))

    @property
    def note(self) -> str:
        """What the string says, in words."""
        noise = ""
        if self.magnitude_std:
            noise = f" with deviation {self.magnitude_std:g}, at most {self.magnitude_max:g}"
        return (
            f"{self.layers} draws among {len(self.operations)} operations, each applied with "
            f"probability {self.prob:g}, magnitude {self.magnitude:g}{noise}"
        )

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Operations int32 [n, layers], arguments float32 [n, layers].

        Operations are places in `operations`; its length stands for none.
        """
        count, layers = len(self.operations), self.layers
        words = random_bits.words(keys, (count if self.weighted else layers) + 3 * layers)
        choice, rest = words[:, : -3 * layers], words[:, -3 * layers :]
        applied, magnitude, sign = jnp.split(rest, 3, axis=1)
        if self.weighted:
            # The largest of log-shares with Gumbel noise are a draw without replacement.
            log_shares = jnp.log(jnp.asarray(self.probabilities, jnp.float32))[None]
            gumbel = -jnp.log(-jnp.log(random_bits.between(choice, 2.0**-25, 1.0)))
            operations = jax.lax.top_k(log_shares + gumbel, layers)[1].astype(jnp.int32)
        else:
            operations = random_bits.integer(choice, jnp.int32(count - 1))
        operations = jnp.where(random_bits.chance(applied, self.prob), operations, count)
        magnitude = noisy_magnitude(
            magnitude, self.magnitude, std=self.magnitude_std, maximum=self.magnitude_max
        )
        return operations, argument(
            self.operations,
            operations,
            magnitude,
            sign >> 31 == 1,
            increasing=self.increasing,
            posterize=self.posterize,
        )


def _section(section: str) -> tuple[str, int | float | bool]:
    """Field of `RandAugment` and value of one section of the string."""
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


def rand_augment(
    config: str, *, operations: tuple[str, ...] = RAND_AUGMENT_OPERATIONS
) -> RandAugment:
    """RandAugment: a few random operations, all of the same magnitude.

    Args:
      config: e.g. 'rand-m9-mstd0.5-inc1' (timm `rand_augment_transform`). Sections: mX
        magnitude, nX layers, pX probability of a layer, mstdX noise of the magnitude (over 100:
        uniform), mmaxX its upper bound, inc1 the increasing set, tweights timm's weighted choice.
      operations: what is drawn from, names of `OPERATIONS`; the order is part of the recipe.

    Raises:
      ConfigError: a section that timm does not know, or an operation that is not registered.
    """
    fields: dict[str, Any] = dict(_section(part) for part in config.split("-")[1:])
    spec = RandAugment(operations=tuple(operations), **fields)
    for name in spec.operations:
        choose(OPERATIONS, name, "operation")
        if spec.weighted and name not in WEIGHTS:
            raise ConfigError(f"operations: timm's tweights have no weight for {name!r}")
    if not spec.operations:
        raise ConfigError("operations must name at least one operation")
    if spec.weighted and spec.layers > len(spec.operations):
        raise ConfigError(
            f"auto_augment {config!r} draws {spec.layers} of {len(spec.operations)} operations "
            "without replacement"
        )
    return spec
