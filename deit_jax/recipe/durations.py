"""Durations with their units, resolved to optimizer steps in one place."""

import dataclasses
import functools
import math

from deit_jax.data.order import steps_per_epoch
from deit_jax.errors import ConfigError

# The step of a state is an int32.
MOST_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Durations:
    """When things happen, in optimizer steps. `*_every` of 0 means never."""

    batch_size: int
    records: int
    steps_per_epoch: int
    total_steps: int
    stop_at: int
    log_every: int
    eval_every: int
    checkpoint_every: int

    def epoch(self, step: int) -> float:
        """Epochs done after `step` steps."""
        return step / self.steps_per_epoch

    def is_due(self, every: int, step: int) -> bool:
        """Whether something that happens `every` steps, and at the end, is due after `step`."""
        return bool(every) and (step % every == 0 or step == self.total_steps)


def make_durations(
    records: int,
    repeats: int = 1,
    *,
    batch_size: int = 1024,
    total_epochs: float = 300.0,
    total_steps: int | None = None,
    stop_at_step: int | None = None,
    log_every_steps: int = 50,
    eval_every_epochs: float = 10.0,
    eval_every_steps: int | None = None,
    checkpoint_every_epochs: float = 1.0,
    checkpoint_every_steps: int | None = None,
) -> Durations:
    """Resolves durations to steps.

    Args:
      records: images in the training split.
      repeats: copies of each image in a batch.
      batch_size: rows of the global batch, over all devices, counting repeats.
      total_epochs: length of the run; `total_steps`, when given, counts instead. The
        learning-rate schedule spans this length.
      stop_at_step: end the run early after this step, with the schedule of the whole
        length; a later run without it resumes there.
      log_every_steps, eval_every_*, checkpoint_every_*: cadence; `*_steps`, when given,
        counts instead of `*_epochs`; 0 switches it off. The last step always
        evaluates and saves.

    Raises:
      ConfigError: a batch that is empty or larger than the data, or a length that is not
        positive.
    """
    per_epoch = steps_per_epoch(records, batch_size, repeats)
    resolve = functools.partial(_steps, per_epoch)
    length = resolve("total", total_epochs, total_steps)
    if not length:
        raise ConfigError("total_epochs (or total_steps) must be above 0")
    if length > MOST_STEPS:
        raise ConfigError(
            f"total_epochs (or total_steps) must be at most {MOST_STEPS:,} steps, not {length:,}"
        )
    if stop_at_step is not None:
        _check_at_least_one("stop_at_step", stop_at_step)
    _check_at_least_one("log_every_steps", log_every_steps)
    return Durations(
        batch_size=batch_size,
        records=records,
        steps_per_epoch=per_epoch,
        total_steps=length,
        stop_at=min(length, stop_at_step or length),
        log_every=log_every_steps,
        eval_every=resolve("eval_every", eval_every_epochs, eval_every_steps),
        checkpoint_every=resolve(
            "checkpoint_every", checkpoint_every_epochs, checkpoint_every_steps
        ),
    )


def _steps(per_epoch: int, name: str, epochs: float, steps: int | None) -> int:
    """Of a duration in epochs or, where given, in steps."""
    if not 0 <= epochs < math.inf:
        raise ConfigError(f"{name}_epochs must be a finite number, at least 0, not {epochs}")
    if steps is not None:
        if steps < 0:
            raise ConfigError(f"{name}_steps must be at least 0, not {steps}")
        return steps
    return max(1, round(epochs * per_epoch)) if epochs else 0


def _check_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}")
