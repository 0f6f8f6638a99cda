"""Learning rate as a function of the optimizer step."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deit_jax import errors

KINDS = ("cosine", "timm_epoch", "constant")

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(
    *,
    batch_size: int,
    steps_per_epoch: int,
    total_steps: int,
    kind: str = "cosine",
    base_lr: float = 5e-4,
    scale_by_batch: int | None = 512,
    warmup_epochs: float = 5.0,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-5,
    warmup_prefix: bool = False,
) -> Schedule:
    """The learning rate `f(step)`: linear warm-up into a cosine over the whole run.

    After the warm-up, with t in epochs and T the length of the run, `min_lr + (peak - min_lr)
    (1 + cos(pi t / T)) / 2`: the cosine starts at epoch 0 and is slightly below the peak when
    the warm-up ends (timm's CosineLRScheduler, as in the paper's runs).

    Args:
      batch_size: images per optimizer step over all devices, repeats included.
      steps_per_epoch, total_steps: length of an epoch and of the run.
      kind: 'cosine', t = step / steps_per_epoch; 'timm_epoch', the curve of the official
        code, constant within an epoch and one epoch late: epoch e runs at f(max(e - 1, 0)),
        so epochs 0 and 1 both run at `warmup_lr`; 'constant', the peak after the warm-up.
      base_lr: learning rate for a batch of `scale_by_batch` images.
      scale_by_batch: peak = base_lr * batch_size / scale_by_batch; None takes `base_lr`
        as the peak (DeiT-III). `warmup_lr` and `min_lr` are never scaled.
      warmup_epochs: length of the warm-up, in epochs; may be a fraction or 0.
      warmup_lr: learning rate of the first step of the warm-up.
      min_lr: floor of the cosine, reached at the end of the run and kept after it; not used
        by 'constant'. A floor above the peak makes the cosine rise.
      warmup_prefix: the cosine falls from the peak over what the warm-up leaves of the run,
        instead of over the whole run (timm's option of that name; MMPretrain).

    Returns `f(step)`: int or int array -> f32 of its shape. Raises ConfigError for an
    unknown kind, a rate below 0 or a size below 1.
    """
    if kind not in KINDS:
        raise errors.unknown("schedule.kind", kind, KINDS)
    sizes = (batch_size, steps_per_epoch, total_steps, scale_by_batch)
    _check(sizes, (base_lr, warmup_epochs, warmup_lr, min_lr))
    peak = peak_lr(base_lr=base_lr, scale_by_batch=scale_by_batch, batch_size=batch_size)
    warmup_steps = warmup_epochs * steps_per_epoch

    def schedule(step: jax.Array | int) -> jax.Array:
        position = jnp.asarray(step, jnp.int32)
        if kind == "timm_epoch":
            position = jnp.maximum(position // steps_per_epoch - 1, 0) * steps_per_epoch
        if kind == "constant":
            main = jnp.full_like(position, peak, jnp.float32)
        else:
            # (1 + cos(pi t / T)) / 2 written as sin^2 of the way left, which keeps its
            # relative precision in f32 near the end of the run, where it nears 0.
            length = total_steps - (warmup_steps if warmup_prefix else 0)
            left = jnp.maximum(total_steps - position, 0).astype(jnp.float32) / max(length, 1)
            main = min_lr + (peak - min_lr) * jnp.sin(0.5 * math.pi * left) ** 2
        if warmup_steps == 0:
            return main
        ramp = warmup_lr + (peak - warmup_lr) * (position.astype(jnp.float32) / warmup_steps)
        return jnp.where(position < warmup_steps, ramp, main)

    return schedule


def peak_lr(*, base_lr: float, scale_by_batch: int | None, batch_size: int) -> float:
    """The learning rate that the warm-up leads to: base_lr x batch / scale_by_batch."""
    return base_lr if scale_by_batch is None else base_lr * batch_size / scale_by_batch


def schedule_warnings(
    *,
    batch_size: int,
    steps_per_epoch: int,
    total_steps: int,
    kind: str,
    base_lr: float,
    scale_by_batch: int | None,
    warmup_epochs: float,
    warmup_lr: float,
    min_lr: float,
    warmup_prefix: bool,
) -> list[str]:
    """What is legal but seldom meant in all of `make_schedule`'s arguments, a line each."""
    peak = peak_lr(base_lr=base_lr, scale_by_batch=scale_by_batch, batch_size=batch_size)
    warnings = []
    if kind != "constant" and min_lr > peak:
        warnings.append(
            f"the floor schedule.min_lr={min_lr:g} is above the peak {peak:g}: the learning rate "
            "rises over the whole run; lower min_lr, or raise it on purpose as the authors' "
            "CIFAR fine-tunes do"
        )
    elif kind != "constant" and min_lr == peak:
        warnings.append(
            f"schedule.min_lr equals the peak {peak:g}: the learning rate is constant after the "
            "warm-up, as in the published 384 fine-tune"
        )
    if warmup_epochs and warmup_lr > peak:
        warnings.append(
            f"schedule.warmup_lr={warmup_lr:g} is above the peak {peak:g}: the warm-up falls"
        )
    if warmup_epochs and warmup_epochs * steps_per_epoch >= total_steps:
        warnings.append(
            f"the warm-up of {warmup_epochs:g} epochs ({warmup_epochs * steps_per_epoch:g} steps) "
            f"is as long as the run of {total_steps} steps: the peak is never reached"
        )
    if kind == "timm_epoch" and total_steps % steps_per_epoch:
        warnings.append(
            "schedule.kind='timm_epoch' changes the rate between epochs only, and the run of "
            f"{total_steps} steps is no whole number of epochs of {steps_per_epoch} steps"
        )
    return warnings


def _check(sizes: tuple[int | None, ...], rates: tuple[float, ...]) -> None:
    names = ("batch_size", "steps_per_epoch", "total_steps", "scale_by_batch")
    for name, value in zip(names, sizes, strict=True):
        if value is not None and value < 1:
            raise errors.ConfigError(f"schedule.{name} must be at least 1, not {value}")
    names = ("base_lr", "warmup_epochs", "warmup_lr", "min_lr")
    for name, value in zip(names, rates, strict=True):
        if not value >= 0:
            raise errors.ConfigError(f"schedule.{name} must be at least 0, not {value}")
