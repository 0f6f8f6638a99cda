"""Loss or gradient that is not a number: stop or skip, counted, with nothing lost.

The step leaves a bad update out by itself. `halting` adds that nothing more is updated
until the host has looked: the loop reads a step's numbers two steps later, and by then
the state would have moved on. So the state that the host finds is the one before the bad
step, exactly; the steps dispatched since changed nothing and are dispatched again.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax.errors import ConfigError, RunStopped, unknown
from deit_jax.train import dump
from deit_jax.train_state import TrainState

PyTree = Any

ACTIONS = ("stop", "skip")


class NonFiniteError(RunStopped):
    """Loss or gradient was not a number; the message names the step and what is left."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """How many bad steps in a row stop the run; fewer are skipped."""

    limit: int


def make_policy(*, action: str = "stop", max_in_a_row: int = 10) -> Policy:
    """The `nonfinite` section.

    Args:
      action: 'stop' ends the run at the first step whose loss or gradient is not finite.
        'skip' leaves the update out, counts, and goes on with the next batch; learning
        rate and draws follow the step, so that a run that is resumed skips the same.
      max_in_a_row: of 'skip': so many bad steps in a row stop the run all the same. A
        diverged run is bad at every step; a lone overflow here and there harms nothing,
        so the total is only shown.

    Raises:
      ConfigError: an unknown action, or a number below 1.
    """
    if action not in ACTIONS:
        raise unknown("config.nonfinite.action", action, ACTIONS)
    if max_in_a_row < 1:
        raise ConfigError(f"config.nonfinite.max_in_a_row={max_in_a_row}; at least 1")
    return Policy(max_in_a_row if action == "skip" else 1)


def halting(step: Callable[[TrainState, PyTree, PyTree], tuple[TrainState, dict]]) -> Callable:
    """`f(state, teacher_variables, batch, halted) -> (state, metrics, halted)` of a step.

    `halted` is a bool scalar. Once a step was not finite it is true, and as long as it is
    true the state, its step number too, is returned as it came; the metrics then mean
    nothing.
    """

    def guarded(state: TrainState, teacher_variables: PyTree, batch: PyTree, halted: jax.Array):
        new, metrics = step(state, teacher_variables, batch)
        new = jax.tree.map(lambda kept, tried: jnp.where(halted, kept, tried), state, new)
        return new, metrics, halted | (metrics["finite"] == 0)

    return guarded


@dataclasses.dataclass
class BadSteps:
    """Counts the bad steps of a run and writes down the state before the first.

    Attributes:
      policy: when to stop.
      folder: the workdir, for dumps.
      metadata: of the run's checkpoints, for dumps.
      total: bad steps since the run began, over all its starts.
      in_a_row: bad steps up to the newest that is known.
    """

    policy: Policy
    folder: pathlib.Path
    metadata: Mapping[str, Any]
    total: int = 0
    in_a_row: int = 0
    _dumped_step: int = -1
    _note: str = ""

    def good(self) -> None:
        """A step was finite."""
        self.in_a_row = 0

    def met(self, step: int, state: TrainState, scalars: Mapping[str, float]) -> tuple[bool, str]:
        """A step was not finite; (whether to stop, the sentences to say).

        The first one of a start is dumped, see `dump`, and the one that ends the run, unless
        the first is of the same row: then nothing but the step's number has changed since.
        `state` is the state after the step, as `halting` keeps it.
        """
        self.total += 1
        self.in_a_row += 1
        stops = self.in_a_row >= self.policy.limit
        same_row = self._dumped_step > step - self.in_a_row
        if self._dumped_step < 0 or (stops and not same_row):
            dumped = dump.write_dump(
                self.folder, step=step, state=state, scalars=scalars, metadata=self.metadata
            )
            self._dumped_step = step
            self._note = (
                f" `deit-jax replay --dump={dumped}` names the gradients." if dumped else ""
            )
        what = (
            f"loss or gradient is not finite at step {step:,} (loss {scalars['loss']}, gradient "
            f"norm {scalars['grad_norm']})"
        )
        if not stops:
            return False, (
                f"skipped: {what}; {self.total} so far, {self.in_a_row} in a row, at "
                f"{self.policy.limit} the run stops.{self._note}"
            )
        row = f", the last of {self.in_a_row} in a row" if self.in_a_row > 1 else ""
        skip = "; config.nonfinite.action=skip passes over single ones"
        return True, (
            f"{what}{row}: the update was not made and the run stops.{self._note} A lower "
            "config.schedule.base_lr, config.optim.clip_norm=1.0 or float32 may help"
            + (skip if self.policy.limit == 1 else "")
        )

    def as_metadata(self) -> dict[str, Any]:
        """What is saved with a checkpoint, so that the counts go on: `**metadata["nonfinite"]`."""
        return {"nonfinite": {"total": self.total, "in_a_row": self.in_a_row}}
