"""The `auto_augment` option: the policies by the name that their strings begin with."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from deit_jax.augment import autoaugment, randaugment
from deit_jax.errors import unknown


class Policy(Protocol):
    """Which operations an image gets.

    Attributes:
      operations: the names that the drawn numbers stand for.
      shares: float64 [layers, operations], how often each is applied.
      note: what its string says, in words.
      draw: from keys [n] to numbers int32 [n, layers], `len(operations)` for none, and
        arguments float32 [n, layers].
    """

    @property
    def operations(self) -> tuple[str, ...]: ...
    @property
    def shares(self) -> np.ndarray: ...
    @property
    def note(self) -> str: ...
    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]: ...


# First part of the string -> a function of the string and of options of its own. The names
# that end in r have the posterize of Google's research code.
POLICIES: dict[str, Callable[..., Policy]] = {
    "rand": randaugment.rand_augment,
    "original": functools.partial(autoaugment.auto_augment, autoaugment.PAPER, "Original"),
    "originalr": functools.partial(autoaugment.auto_augment, autoaugment.PAPER, "Increasing"),
    "v0": functools.partial(autoaugment.auto_augment, autoaugment.TPU_EFFICIENTNET, ""),
    "v0r": functools.partial(autoaugment.auto_augment, autoaugment.TPU_EFFICIENTNET, "Increasing"),
}


def chosen(config: str | None) -> list[Callable[..., Policy]]:
    """The entry of `POLICIES` that a string names, none for None or ''.

    Raises:
      ConfigError: there is no such policy.
    """
    if not config:
        return []
    name = config.split("-")[0]
    if name not in POLICIES:
        known = ["rand-m9-mstd0.5-inc1", *(name for name in POLICIES if name != "rand")]
        raise unknown("policy auto_augment", config, known)
    return [POLICIES[name]]


def parse(config: str, **options: Any) -> Policy:
    """The policy of 'rand-m9-mstd0.5-inc1', 'original', 'v0-mstd0.5' and so on.

    Raises:
      ConfigError: a string or option that the policy does not know.
    """
    (make,) = chosen(config)
    return make(config, **options)
