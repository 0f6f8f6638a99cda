"""The `auto_augment` option: RandAugment (arXiv 1909.13719) and AutoAugment (arXiv 1805.09501).

Policies are parsed from timm's strings, such as 'rand-m9-mstd0.5-inc1', 'original', 'v0-mstd0.5'.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
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
)
from deit_jax.builders import choose
from deit_jax.errors import ConfigError, check_at_most, unknown

# timm's `tweights`: drawn without replacement.
WEIGHTS = {"Rotate": 3.0, "ShearX": 2.0, "ShearY": 2.0, "TranslateXRel": 1.0, "TranslateYRel": 1.0}
WEIGHTS |= {"Color": 0.25, "Sharpness": 0.25, "AutoContrast": 0.25}
WEIGHTS |= {name: 0.05 for name in RAND_AUGMENT_OPERATIONS if name not in WEIGHTS}

# Sub-policies, two to a line: operation, probability, magnitude, twice. One that appears twice
# is drawn twice as often.
PAPER = """
    Posterize 0.4 8 Rotate 0.6 9       Solarize 0.6 5 AutoContrast 0.6 5
    Equalize 0.8 8 Equalize 0.6 3      Posterize 0.6 7 Posterize 0.6 6
    Equalize 0.4 7 Solarize 0.2 4      Equalize 0.4 4 Rotate 0.8 8
    Solarize 0.6 3 Equalize 0.6 7      Posterize 0.8 5 Equalize 1.0 2
    Rotate 0.2 3 Solarize 0.6 8        Equalize 0.6 8 Posterize 0.4 6
    Rotate 0.8 8 Color 0.4 0           Rotate 0.4 9 Equalize 0.6 2
    Equalize 0.0 7 Equalize 0.8 8      Invert 0.6 4 Equalize 1.0 8
    Color 0.6 4 Contrast 1.0 8         Rotate 0.8 8 Color 1.0 2
    Color 0.8 8 Solarize 0.8 7         Sharpness 0.4 7 Invert 0.6 8
    ShearX 0.6 5 Equalize 1.0 9        Color 0.4 0 Equalize 0.6 3
    Equalize 0.4 7 Solarize 0.2 4      Solarize 0.6 5 AutoContrast 0.6 5
    Invert 0.6 4 Equalize 1.0 8        Color 0.6 4 Contrast 1.0 8
    Equalize 0.8 8 Equalize 0.6 3
"""
TPU_EFFICIENTNET = """
    Equalize 0.8 1 ShearY 0.8 4         Color 0.4 9 Equalize 0.6 3
    Color 0.4 1 Rotate 0.6 8            Solarize 0.8 3 Equalize 0.4 7
    Solarize 0.4 2 Solarize 0.6 2       Color 0.2 0 Equalize 0.8 8
    Equalize 0.4 8 SolarizeAdd 0.8 3    ShearX 0.2 9 Rotate 0.6 8
    Color 0.6 1 Equalize 1.0 2          Invert 0.4 9 Rotate 0.6 0
    Equalize 1.0 9 ShearY 0.6 3         Color 0.4 7 Equalize 0.6 0
    Posterize 0.4 6 AutoContrast 0.4 7  Solarize 0.6 8 Color 0.6 9
    Solarize 0.2 4 Rotate 0.8 9         Rotate 1.0 7 TranslateYRel 0.8 9
    ShearX 0.0 0 Solarize 0.8 4         ShearY 0.8 0 Color 0.6 4
    Color 1.0 0 Rotate 0.6 2            Equalize 0.8 4 Equalize 0.0 8
    Equalize 1.0 4 AutoContrast 0.6 2   ShearY 0.4 7 SolarizeAdd 0.6 7
    Posterize 0.8 2 Solarize 0.6 10     Solarize 0.6 8 Equalize 0.6 1
    Color 0.8 6 Rotate 0.4 5
"""


class Policy:
    """Which operations an image gets, and with which arguments."""

    operations: tuple[str, ...]  # the names that the drawn numbers stand for
    shares: np.ndarray  # float64 [layers, operations], how often each is applied
    note: str  # what the string says beyond the policy's name, in words
    magnitude_std: float  # of the magnitudes' noise; inf: uniform between 0 and the magnitude
    magnitude_max: float  # upper bound of the noisy magnitudes
    increasing: bool  # see `operations.Level`, as is `posterize`
    posterize: str
    choice_words: int  # random words that `choose` takes

    def choose(self, words: jax.Array) -> tuple[jax.Array, Any, Any]:
        """uint32 [n, choice_words] to numbers int32 [n, layers], probabilities, magnitudes."""
        raise NotImplementedError

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys [n] to numbers int32 [n, layers] and arguments float32 [n, layers].

        The number `len(operations)` stands for no operation.
        """
        words = random_bits.words(keys, self.choice_words + 3 * len(self.shares))
        choice, rest = jnp.split(words, [self.choice_words], axis=1)
        applied, noise, sign = jnp.split(rest, 3, axis=1)
        numbers, probs, magnitudes = self.choose(choice)
        numbers = jnp.where(random_bits.chance(applied, probs), numbers, len(self.operations))
        return numbers, self.arguments(numbers, magnitudes, noise, sign)

    def arguments(
        self, numbers: jax.Array, magnitudes: Any, noise: jax.Array, sign: jax.Array
    ) -> jax.Array:
        """Arguments float32 of operations int32, from uint32 for their noise and sign."""
        if math.isinf(self.magnitude_std):
            magnitudes = random_bits.unit(noise) * magnitudes
        else:
            magnitudes = magnitudes + self.magnitude_std * random_bits.normal(noise)
        magnitudes = jnp.clip(magnitudes, 0.0, self.magnitude_max)
        options = {"increasing": self.increasing, "posterize": self.posterize}
        return argument(self.operations, numbers, magnitudes, sign >> 31 == 1, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Policy):
    """A parsed `rand-...` string; the defaults are timm's for what a string leaves out."""

    magnitude: int = 10
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = LEVEL_DENOMINATOR
    increasing: bool = False
    weighted: bool = False
    operations: tuple[str, ...] = RAND_AUGMENT_OPERATIONS

    @property
    def posterize(self) -> str:
        return "Increasing" if self.increasing else ""

    @property
    def choice_words(self) -> int:
        return len(self.operations) if self.weighted else self.layers

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
        noise = ""
        if self.magnitude_std:
            noise = f" with deviation {self.magnitude_std:g}, at most {self.magnitude_max:g}"
        return (
            f"{self.layers} draws among {len(self.operations)} operations, each applied with "
            f"probability {self.prob:g}, magnitude {self.magnitude:g}{noise}"
        )

    def choose(self, words: jax.Array) -> tuple[jax.Array, float, int]:
        if not self.weighted:
            numbers = random_bits.integer(words, jnp.int32(len(self.operations) - 1))
            return numbers, self.prob, self.magnitude
        # The largest of log-shares with Gumbel noise are a draw without replacement.
        log_shares = jnp.log(jnp.asarray(self.probabilities, jnp.float32))[None]
        gumbel = -jnp.log(-jnp.log(random_bits.between(words, 2.0**-25, 1.0)))
        numbers = jax.lax.top_k(log_shares + gumbel, self.layers)[1].astype(jnp.int32)
        return numbers, self.prob, self.magnitude


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAugment(Policy):
    """A parsed string such as 'original-mstd0.5' with its sub-policies, see `PAPER`."""

    sub_policies: str
    posterize: str
    magnitude_std: float = 0.0
    magnitude_max = LEVEL_DENOMINATOR
    increasing = False
    operations = RAND_AUGMENT_OPERATIONS
    choice_words = 1

    @property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Operation int32, probability and magnitude float32, each [25 sub-policies, 2]."""
        fields = np.array(self.sub_policies.split()).reshape(-1, 2, 3)
        numbers = [[self.operations.index(name) for name in pair] for pair in fields[..., 0]]
        probs, magnitudes = (fields[..., i].astype(np.float32) for i in (1, 2))
        return np.array(numbers, np.int32), probs, magnitudes

    @property
    def shares(self) -> np.ndarray:
        numbers, probs, _ = self.tables
        shares = np.zeros((2, len(self.operations)))
        np.add.at(shares, (np.array([[0, 1]]), numbers), probs / len(numbers))
        return shares

    @property
    def note(self) -> str:
        std = self.magnitude_std
        return f"magnitudes with deviation {std:g}" if std else ""

    def choose(self, words: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        numbers, probs, magnitudes = (jnp.asarray(table) for table in self.tables)
        chosen = random_bits.integer(words[:, 0], jnp.int32(len(numbers) - 1))
        return numbers[chosen], probs[chosen], magnitudes[chosen]


def rand_augment(
    config: str, *, operations: tuple[str, ...] = RAND_AUGMENT_OPERATIONS
) -> RandAugment:
    """RandAugment: a few random operations, all of the same magnitude.

    Args:
      config: e.g. 'rand-m9-mstd0.5-inc1' (timm `rand_augment_transform`). Sections: mX
        magnitude, nX layers, pX probability of a layer, mstdX noise of the magnitude (over 100:
        uniform), mmaxX its upper bound, inc1 the increasing set, tweights timm's weighted choice.
      operations: what is drawn from, names of `OPERATIONS`; the order is part of the recipe.
    """
    fields: dict[str, Any] = dict(_section(part) for part in config.split("-")[1:])
    policy = RandAugment(operations=tuple(operations), **fields)
    check_at_most(100, **{f"auto_augment {config!r}: n": policy.layers})
    for name in policy.operations:
        choose(OPERATIONS, name, "operation")
        if policy.weighted and name not in WEIGHTS:
            raise ConfigError(f"operations: timm's tweights have no weight for {name!r}")
    if not policy.operations:
        raise ConfigError("operations must name at least one operation")
    if policy.magnitude > policy.magnitude_max:
        raise ConfigError(
            f"auto_augment {config!r}: the magnitude m is at most {policy.magnitude_max:g} (mmax)"
        )
    if policy.weighted and policy.layers > len(policy.operations):
        raise ConfigError(
            f"auto_augment {config!r} draws {policy.layers} of {len(policy.operations)} operations "
            "without replacement"
        )
    return policy


def _section(section: str) -> tuple[str, int | float | bool]:
    """Field of `RandAugment` and value of one section of the string."""
    if section == "tweights":
        return "weighted", True
    match = re.fullmatch(r"(mstd|mmax|inc|m|n|p)(\d{1,9}(?:\.\d+)?|inf)", section)
    if match is None:
        known = ["m9", "n2", "p0.5", "mstd0.5", "mmax10", "inc1", "tweights"]
        raise unknown("RandAugment section", section, known)
    key, text = match.groups()
    whole = key not in ("p", "mstd")
    if whole and not text.isdigit():
        raise ConfigError(f"RandAugment section {section!r} needs a whole number, such as {key}1")
    number = int(text) if whole else float(text)
    if key == "n" and number < 1:
        raise ConfigError(f"RandAugment section {section!r}: at least one operation is drawn")
    if key == "p" and number > 1:
        raise ConfigError(f"RandAugment section {section!r}: a probability is in [0, 1]")
    return {
        "m": ("magnitude", number),
        "n": ("layers", number),
        "p": ("prob", number),
        "mstd": ("magnitude_std", math.inf if number > 100 else number),
        # timm reads 0 as "not given".
        "mmax": ("magnitude_max", number or LEVEL_DENOMINATOR),
        "inc": ("increasing", bool(number)),
    }[key]


def auto_augment(sub_policies: str, posterize: str, config: str) -> AutoAugment:
    """AutoAugment: one of 25 pairs of operations, each with its own probability and magnitude.

    Args:
      sub_policies, posterize: see `AutoAugment`.
      config: e.g. 'original' or 'v0r-mstd0.5' (timm `auto_augment_transform`); mstdX is the
        noise of the magnitudes.
    """
    std = 0.0
    for section in config.split("-")[1:]:
        match = re.fullmatch(r"mstd(\d{1,9}(?:\.\d+)?)", section)
        if match is None:
            raise unknown(f"AutoAugment section of {config!r}:", section, ["mstd0.5"])
        std = float(match[1])
    return AutoAugment(sub_policies=sub_policies, posterize=posterize, magnitude_std=std)


# First part of the string -> a function of the string and of its own options. The names
# that end in r have the posterize of Google's research code.
POLICIES: dict[str, Callable[..., Policy]] = {
    "rand": rand_augment,
    "original": functools.partial(auto_augment, PAPER, "Original"),
    "originalr": functools.partial(auto_augment, PAPER, "Increasing"),
    "v0": functools.partial(auto_augment, TPU_EFFICIENTNET, ""),
    "v0r": functools.partial(auto_augment, TPU_EFFICIENTNET, "Increasing"),
}


def chosen(config: str | None) -> list[Callable[..., Policy]]:
    """The entry of `POLICIES` that a string names, none for None or ''."""
    if not config:
        return []
    name = config.split("-")[0]
    if name not in POLICIES:
        known = ["rand-m9-mstd0.5-inc1", *(name for name in POLICIES if name != "rand")]
        raise unknown("policy auto_augment", config, known)
    return [POLICIES[name]]
