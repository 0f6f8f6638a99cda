"""Learning rate as a function of the optimizer step: a linear warm-up, then a curve.

A new curve is a function and a line in `SCHEDULES`. The function takes a `Run` and returns the
rate by step, an int32 array of any shape -> f32 of that shape; `after_warmup` puts the linear
warm-up in front. Its keyword-only parameters are options of the `schedule` section while
it is chosen.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import builders
from deit_jax.errors import ConfigError, check_at_most

Rate = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Run:
    """The run as a curve needs it.

    Attributes:
      peak, warmup_lr: learning rates at the end and at the first step of the warm-up.
      warmup_steps: length of the warm-up, may be a fraction or 0.
      warnings: what is legal but seldom meant; a curve appends its own.
    """

    peak: float
    warmup_lr: float
    warmup_steps: float
    steps_per_epoch: int
    total_steps: int
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate by step: called with an int or an int array, it gives f32 of its shape.

    `rate` is the curve with its warm-up, `peak` the rate at the end of that, and `warnings` are
    what is legal but seldom meant.
    """

    rate: Rate
    peak: float
    warnings: tuple[str, ...]

    def __call__(self, step: jax.Array | int) -> jax.Array:
        return self.rate(jnp.asarray(step, jnp.int32))


def cosine(
    run: Run, *, min_lr: float = 1e-5, warmup_prefix: bool = False, by_epoch: bool = False
) -> Rate:
    """Cosine decay by step.

    With t in epochs and T the length of the run, `min_lr + (peak - min_lr) (1 + cos(pi t / T))
    / 2`: the cosine starts at epoch 0 and is slightly below the peak when the warm-up ends
    (the formula of timm's CosineLRScheduler, at every step). The paper's runs set the rate once
    an epoch and an epoch late, which is `timm_epoch`: in the middle of epochs 0 to 5 the rate
    here is 101, 301, 2.5, 1.7, 1.5 and 1.25 times theirs, summed over the run the same.

    Args:
      min_lr: floor of the cosine, reached at the end of the run and constant after it; never
        scaled by the batch. A floor above the peak makes the cosine rise.
      warmup_prefix: the cosine falls from the peak over what the warm-up leaves of the run,
        instead of over the whole run (timm's option of that name; MMPretrain).
      by_epoch: the cosine moves between epochs only, the warm-up with every step (MMPretrain).
    """
    _check_rate("min_lr", min_lr)
    if min_lr > run.peak:
        run.warnings.append(
            f"the floor schedule.min_lr={min_lr:g} is above the peak {run.peak:g}: the learning "
            "rate rises over the whole run; lower min_lr, or raise it on purpose as the authors' "
            "CIFAR fine-tunes do"
        )
    elif min_lr == run.peak:
        run.warnings.append(
            f"schedule.min_lr equals the peak {run.peak:g}: the learning rate is constant after "
            "the warm-up, as in the published 384 fine-tune"
        )
    length = max(run.total_steps - (run.warmup_steps if warmup_prefix else 0), 1)

    def rate(step: jax.Array) -> jax.Array:
        # (1 + cos(pi t / T)) / 2 written as sin^2 of the remaining share, which keeps its
        # relative precision in f32 near the end of the run, where it nears 0.
        if by_epoch:
            step = step // run.steps_per_epoch * run.steps_per_epoch
        left = jnp.maximum(run.total_steps - step, 0).astype(jnp.float32) / length
        return min_lr + (run.peak - min_lr) * jnp.sin(0.5 * math.pi * left) ** 2

    return after_warmup(run, rate)


def timm_epoch(run: Run, *, min_lr: float = 1e-5, warmup_prefix: bool = False) -> Rate:
    """Cosine decay by epoch as the official code runs it: constant within an epoch, one epoch late.

    Epoch e runs at f(max(e - 1, 0)), f the `cosine` of the same options, so that epochs 0 and
    1 both run at `warmup_lr` (DeiT's loop calls timm's scheduler with the number of the epoch
    that has just ended). The curve of all recipes for DeiT's published figures.
    """
    by_step = cosine(run, min_lr=min_lr, warmup_prefix=warmup_prefix)
    if run.total_steps % run.steps_per_epoch:
        run.warnings.append(
            "schedule.kind='timm_epoch' changes the rate between epochs only, and the run of "
            f"{run.total_steps} steps is not a whole number of epochs of {run.steps_per_epoch} "
            "steps"
        )

    def rate(step: jax.Array) -> jax.Array:
        return by_step(jnp.maximum(step // run.steps_per_epoch - 1, 0) * run.steps_per_epoch)

    return rate


def pycls_epoch(run: Run, *, min_lr: float = 0.0) -> Rate:
    """Cosine decay by epoch, the warm-up a factor on it: RegNet's authors' (pycls).

    Epoch e of a warm-up of W runs at `(f (1 - e / W) + e / W) cosine(e)`, f = warmup_lr / peak,
    without delay.
    """
    by_epoch = cosine(dataclasses.replace(run, warmup_steps=0), min_lr=min_lr, by_epoch=True)
    first = run.warmup_lr / run.peak if run.peak else 1.0

    def rate(step: jax.Array) -> jax.Array:
        epoch_start = (step // run.steps_per_epoch * run.steps_per_epoch).astype(jnp.float32)
        share = jnp.clip(epoch_start / run.warmup_steps, 0.0, 1.0) if run.warmup_steps else 1.0
        return by_epoch(step) * (first + (1.0 - first) * share)

    return rate


def constant(run: Run) -> Rate:
    """Constant at the peak."""
    return after_warmup(run, lambda step: jnp.full_like(step, run.peak, jnp.float32))


SCHEDULES = {
    "cosine": cosine,
    "timm_epoch": timm_epoch,
    "pycls_epoch": pycls_epoch,
    "constant": constant,
}


@builders.chooses(kind=SCHEDULES)
def make_schedule(
    batch_size: int,
    steps_per_epoch: int,
    total_steps: int,
    *,
    kind: str = "cosine",
    base_lr: float = 5e-4,
    scale_by_batch: int | None = 512,
    warmup_epochs: float = 5.0,
    warmup_lr: float = 1e-6,
    **options: Any,
) -> Schedule:
    """The learning rate of a run.

    Args:
      batch_size: images per optimizer step over all devices, repeats included.
      steps_per_epoch, total_steps: length of an epoch and of the run.
      kind: the curve, a name in `SCHEDULES`.
      base_lr: learning rate for a batch of `scale_by_batch` images.
      scale_by_batch: peak = base_lr * batch_size / scale_by_batch; None takes `base_lr`
        as the peak (DeiT-III). No other rate is scaled.
      warmup_epochs: length of the warm-up, in epochs; may be a fraction or 0.
      warmup_lr: learning rate of the first step of the warm-up.
      options: those of the curve that `kind` chose.

    Raises:
      ConfigError: for an unknown kind, a rate below 0 or infinite, or a size below 1.
    """
    sizes = {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
    sizes |= {"total_steps": total_steps, "scale_by_batch": scale_by_batch}
    check_at_most(2**31 - 1, scale_by_batch=scale_by_batch)
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ConfigError(f"{name} must be at least 1, not {size}")
    _check_rate("base_lr", base_lr)
    _check_rate("warmup_epochs", warmup_epochs, most=10**6)
    _check_rate("warmup_lr", warmup_lr)
    peak = base_lr if scale_by_batch is None else base_lr * batch_size / scale_by_batch
    run = Run(peak, warmup_lr, warmup_epochs * steps_per_epoch, steps_per_epoch, total_steps)
    curve = builders.choose(SCHEDULES, kind, "schedule")(run, **options)
    if run.warmup_steps and warmup_lr > peak:
        run.warnings.append(
            f"schedule.warmup_lr={warmup_lr:g} is above the peak {peak:g}: the warm-up falls"
        )
    if run.warmup_steps and run.warmup_steps >= total_steps:
        run.warnings.append(
            f"the warm-up of {warmup_epochs:g} epochs ({run.warmup_steps:g} steps) is as long as "
            f"the run of {total_steps} steps: the peak is never reached"
        )
    return Schedule(curve, peak, tuple(run.warnings))


def after_warmup(run: Run, rate: Rate) -> Rate:
    """`rate` after a linear warm-up from `run.warmup_lr` to the peak."""
    if run.warmup_steps == 0:
        return rate

    def warmed_up(step: jax.Array) -> jax.Array:
        share = step.astype(jnp.float32) / run.warmup_steps
        ramp = run.warmup_lr + (run.peak - run.warmup_lr) * share
        return jnp.where(step < run.warmup_steps, ramp, rate(step))

    return warmed_up


def _check_rate(name: str, value: float, most: float = 3e38) -> None:
    if not 0 <= value < math.inf:
        raise ConfigError(f"{name} must be a finite number, at least 0, not {value}")
    # By default what float32 holds: a rate that diverges is for the check of the loss to end.
    check_at_most(most, **{name: value})
