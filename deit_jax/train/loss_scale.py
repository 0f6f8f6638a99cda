"""The scaled loss of float16, whose smallest gradients would otherwise become 0.

The loss is multiplied by the scale before it is differentiated, and the gradients, in f32, are
divided by it (arXiv 1710.03740). Where the scale is too large the gradients overflow while the
loss itself is finite: such a step is left out, as a non-finite one is, but counted apart, for
with a scale of its own choice a run overflows now and then. A loss that is not finite is never
an overflow of the scale.

To add a rule: a function that returns a `Rule`, or None for no scale, and a line in `LOSS_SCALES`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deit_jax import builders
from deit_jax.errors import ConfigError, check_at_most

# `{'scale': f32, 'finite_steps', 'overflowed_steps', 'overflowed_in_a_row': int32}`, scalars:
# finite steps since the scale changed or a step overflowed, and overflowed ones of the run.
State = dict[str, jax.Array]


class Rule(NamedTuple):
    """How the scale changes.

    Attributes:
      initial: of a new run.
      tolerates: whether a step of this state may overflow; else it counts as non-finite.
      after_overflow: the scale after a step that overflowed.
      after_finite: the scale after so many finite steps, `(scale, steps) -> scale`.
    """

    initial: float
    tolerates: Callable[[State], jax.Array]
    after_overflow: Callable[[jax.Array], jax.Array]
    after_finite: Callable[[jax.Array, jax.Array], jax.Array]

    def first_state(self) -> State:
        """The state of a new run."""
        zero = jnp.zeros((), jnp.int32)
        counts = dict.fromkeys(("finite_steps", "overflowed_steps", "overflowed_in_a_row"), zero)
        return {"scale": jnp.asarray(self.initial, jnp.float32)} | counts

    def next_state(self, state: State, finite: jax.Array, overflowed: jax.Array) -> State:
        """The state after a step; unchanged if it was neither finite nor an overflow."""
        steps = state["finite_steps"] + finite
        grown = self.after_finite(state["scale"], steps)
        after_finite = jnp.where(finite, grown, state["scale"])
        scale = jnp.where(overflowed, self.after_overflow(state["scale"]), after_finite)
        return {
            "scale": scale,
            "finite_steps": jnp.where(overflowed | (scale != state["scale"]), 0, steps),
            "overflowed_steps": state["overflowed_steps"] + overflowed,
            "overflowed_in_a_row": jnp.where(finite, 0, state["overflowed_in_a_row"] + overflowed),
        }


def none(dtype: str) -> None:
    """The loss as it is."""
    return None


def static(dtype: str, *, scale: float = 1024.0, max_overflows: int = 10) -> Rule:
    """One scale for the whole run; more than `max_overflows` in a row count as non-finite."""
    if not scale >= 1 or max_overflows < 0:
        raise ConfigError(
            f"scale must be at least 1, not {scale:g}; max_overflows at least 0, not "
            f"{max_overflows}"
        )
    check_at_most(2**24, scale=scale)
    check_at_most(2**31 - 1, max_overflows=max_overflows)
    return Rule(
        initial=scale,
        tolerates=lambda state: state["overflowed_in_a_row"] < max_overflows,
        after_overflow=lambda scale: scale,
        after_finite=lambda scale, steps: scale,
    )


def dynamic(dtype: str, *, initial_scale: float = 65536.0, growth_interval: int = 2000) -> Rule:
    """Halved at an overflow, doubled after `growth_interval` finite steps, as torch's GradScaler.

    At a scale of 1 there is nothing left to halve: gradients that overflow are non-finite.
    """
    if not 1 <= initial_scale <= 2.0**24 or growth_interval < 1:
        raise ConfigError(
            f"initial_scale must be 1 to {2**24}, not {initial_scale:g}; growth_interval at least "
            f"1, not {growth_interval}"
        )
    check_at_most(2**31 - 1, growth_interval=growth_interval)
    grow = lambda scale: jnp.minimum(2.0 * scale, 2.0**24)
    return Rule(
        initial=initial_scale,
        tolerates=lambda state: state["scale"] > 1,
        after_overflow=lambda scale: jnp.maximum(0.5 * scale, 1.0),
        after_finite=lambda scale, steps: jnp.where(steps >= growth_interval, grow(scale), scale),
    )


def auto(dtype: str, *, initial_scale: float = 65536.0, growth_interval: int = 2000) -> Rule | None:
    """`dynamic` in float16, `none` in other types."""
    options = {"initial_scale": initial_scale, "growth_interval": growth_interval}
    rule = dynamic(dtype, **options)
    return rule if dtype == "float16" else None


LOSS_SCALES = {"auto": auto, "none": none, "static": static, "dynamic": dynamic}


def make_rule(dtype: str, section: Mapping[str, Any]) -> Rule | None:
    """The rule that the `step` section chooses for a model of this compute type.

    Raises:
      ConfigError: an unknown rule, or options out of range.
    """
    rule = builders.choose(LOSS_SCALES, section.get("loss_scale", "auto"), "loss_scale")
    return builders.bind(rule, section)(dtype)
