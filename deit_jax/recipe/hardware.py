"""What the accelerator could do at most, what share of it a run uses, and its memory.

Peaks are dense bf16 matrix products with f32 accumulation, in FLOP/s, without sparsity,
as the makers publish them:

    H100, H200      NVIDIA data sheets, whose tensor core figures are twice that, with
                    sparsity: SXM 989.4, PCIe 756.5, NVL 835.5 TFLOP/s
    A100            NVIDIA A100 data sheet: 312
    L4, L40S        NVIDIA data sheets: 121 (halved as above), 362.05
    RTX 3090, 4090  NVIDIA GA102 and Ada whitepapers, appendix, bf16 with FP32 accumulate:
                    71, 165.2
    RTX 5090        NVIDIA RTX Blackwell whitepaper, appendix: 209.5
    TPU             docs.cloud.google.com/tpu/docs, a page for each version, a chip:
                    v2 45, v3 123, v4 275, v5e 197, v5p 459, v6e 918, TPU7x 2307

A jax device is a whole GPU. A TPU chip of two cores (v2, v3, v4, v5p, TPU7x) is one or two
devices, which `device.num_cores` tells, so TPUs are listed by core. V100 and T4 have no
bf16 units; for them as for whatever is not listed nothing is claimed.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import models
from deit_jax.recipe import costs

_TERA = 1e12

# The whole `device_kind` as a regular expression: parts of a card (MIG), laptop and other
# variants of the same number have other peaks.
_GPU_PEAKS = {
    r"NVIDIA H200": 989.4,
    r"NVIDIA H200 NVL": 835.5,
    r"NVIDIA H100 80GB HBM3": 989.4,
    r"NVIDIA H100 PCIe": 756.5,
    r"NVIDIA H100 NVL": 835.5,
    r"(NVIDIA )?A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": 312.0,
    r"NVIDIA L4": 121.0,
    r"NVIDIA L40S": 362.05,
    r"NVIDIA GeForce RTX 3090": 71.0,
    r"NVIDIA GeForce RTX 4090": 165.2,
    r"NVIDIA GeForce RTX 5090": 209.5,
}
_TPU_CORE_PEAKS = {
    r"TPU v2": 45.0 / 2,
    r"TPU v3": 123.0 / 2,
    r"TPU v4": 275.0 / 2,
    r"TPU v5 lite|TPU v5e": 197.0,
    r"TPU v5|TPU v5p": 459.0 / 2,
    r"TPU v6 lite|TPU v6e": 918.0,
    r"TPU7x": 2307.0 / 2,
}


def peak_flops(device: Any) -> float | None:
    """Dense bf16 FLOP/s of one jax device; None for hardware that is not listed."""
    for pattern, peak in _GPU_PEAKS.items():
        if re.fullmatch(pattern, device.device_kind):
            return peak * _TERA
    for pattern, peak in _TPU_CORE_PEAKS.items():
        cores = getattr(device, "num_cores", None)
        if cores and re.fullmatch(pattern, device.device_kind):
            return peak * cores * _TERA
    return None


def step_flops(
    model: models.Model, *, batch_size: int, teacher: models.Model | None = None
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
    teacher: models.Model | None = None,
    devices: list[Any] | None = None,
) -> float | None:
    """Seconds that a step would take at the devices' peak; MFU is this over the step's time.

    Args:
      devices: that share the batch; None for all.

    Returns:
      None where it would be a guess: on unlisted hardware, on devices of several kinds, or
      when student or teacher does not compute in bf16.
    """
    devices = jax.devices() if devices is None else devices
    peak = peak_flops(devices[0])
    computing = [m for m in (model, teacher) if m is not None]
    if (
        peak is None
        or len({device.device_kind for device in devices}) > 1
        or any(jnp.dtype(m.dtype) != jnp.bfloat16 for m in computing)
    ):
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
