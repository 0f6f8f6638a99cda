"""What a step costs in operations, what share of the accelerator's peak a run uses, its memory."""

from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import models
from deit_jax.recipe import costs
from deit_jax.recipe.devices import listed
from deit_jax.teacher.model import Ensemble


def peak_flops(device: Any, dtype: str = "bfloat16") -> float | None:
    """Dense FLOP/s of one jax device in a compute type; None for hardware that is not listed."""
    entry = listed(device)
    return entry and entry.peak_flops(dtype)


def step_flops(
    model: models.Model, *, batch_size: int, teacher: models.Model | Ensemble | None = None
) -> float:
    """Floating-point operations of one training step over the whole batch.

    Two for each multiply-accumulate; three times the student's evaluation (forward, and
    twice that backward) and once the teacher's. What `remat` computes again is not
    counted: that is time lost, not work done.
    """
    macs = costs.step_macs(model, batch_size=batch_size, teacher=teacher, recomputed=False)
    return 2 * sum(macs.values())


def ideal_step_seconds(
    model: models.Model,
    *,
    batch_size: int,
    teacher: models.Model | Ensemble | None = None,
    devices: list[Any] | None = None,
) -> float | None:
    """Seconds that a step would take at the devices' peak; MFU is this over the step's time.

    Args:
      devices: that share the batch; None for all.

    Returns:
      None where it would be a guess: on unlisted hardware, on devices of several kinds, or
      when student and teacher do not both compute in bfloat16, or both in float16.
    """
    devices = jax.devices() if devices is None else devices
    dtypes = {jnp.dtype(m.dtype).name for m in (model, teacher) if m is not None}
    if len({device.device_kind for device in devices}) > 1 or len(dtypes) > 1:
        return None
    peak = peak_flops(devices[0], *dtypes)
    if peak is None or dtypes == {"float32"}:
        return None
    flops = step_flops(model, batch_size=batch_size, teacher=teacher)
    return flops / (len(devices) * peak)


def peak_memory_gib() -> float | None:
    """The most memory in use at a time so far on the fullest device of this process, GiB.

    None where the backend does not count.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return max(peaks) / 2**30 if peaks else None
