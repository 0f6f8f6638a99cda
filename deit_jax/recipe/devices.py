"""The table of accelerators: what each can do at most, as its maker publishes it.

Peaks are dense matrix products, without sparsity, in TFLOP/s: bfloat16 and float16 with f32
accumulation; float32 as jax multiplies it by default, which from compute capability 8.0 on is
TF32, and on a TPU one product of bfloat16. Memory is in GB of 10^9 bytes, bandwidth in GB/s.

    P100, V100, T4  NVIDIA data sheets: 9.3 and 18.7 (no tensor cores), 15.7 and 125, 8.1 and 65
    A100            NVIDIA data sheet: 312, TF32 156
    L4, L40S        NVIDIA data sheets, halved where they count sparsity: 121, 362.05
    RTX 3090, 4090  NVIDIA GA102 and Ada whitepapers, appendix, with FP32 accumulate: 71, 165.2
    RTX 5090        NVIDIA RTX Blackwell whitepaper, appendix: 209.5
    H100, H200      NVIDIA data sheets, halved: SXM 989.4, PCIe 756.5, NVL 835.5
    TPU             docs.cloud.google.com/tpu/docs, a page for each version, a chip:
                    v2 45, v3 123, v4 275, v5e 197, v5p 459, v6e 918, TPU7x 2307

A new device is a line in `DEVICES`.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from deit_jax import builders

_TERA, _GIGA = 1e12, 1e9
# The share of a GPU's memory that jax takes when it starts, unless this variable says another.
_GPU_SHARE, MEMORY_SHARE = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU, or a TPU chip.

    Attributes:
      title: its name.
      kind: the whole `device_kind` that jax reports, as a regular expression: parts of a card
        (MIG), laptop and other variants of the same number are other devices.
      platform: gpu or tpu, as jax calls it.
      memory, bandwidth: in GB and GB/s.
      peaks: TFLOP/s by compute type.
      compute_capability: of an NVIDIA GPU.
      cores: of a TPU chip, which is as many devices (v2, v3, TPU7x) or one, see `per_chip`.
      per_chip: jax devices of a TPU chip.
    """

    title: str
    kind: str
    platform: str
    memory: float
    bandwidth: float
    peaks: Mapping[str, float]
    compute_capability: str = ""
    cores: int = 1
    per_chip: int = 1

    @property
    def device_kind(self) -> str:
        """As of a device of jax, for messages."""
        return self.title

    @property
    def usable_bytes(self) -> float:
        """What jax can use of the memory of one of its devices."""
        share = 1.0 / self.per_chip
        if self.platform == "gpu":
            share = float(os.environ.get(MEMORY_SHARE) or _GPU_SHARE)
        return self.memory * _GIGA * share

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s of one jax device in a compute type; None where it has no units for it."""
        peak = self.peaks.get(dtype)
        return None if peak is None else peak * _TERA / self.per_chip


def _gpu(title: str, kind: str, capability: str, memory: float, bandwidth: float, **peaks: float):
    return Device(title, kind, "gpu", memory, bandwidth, peaks, compute_capability=capability)


def _ampere(
    title: str, kind: str, capability: str, memory: float, bandwidth: float, *, half: float
):
    """From Ampere on: bf16 and f16 alike, TF32 at half of that."""
    peaks = {"bfloat16": half, "float16": half, "float32": half / 2}
    return _gpu(title, kind, capability, memory, bandwidth, **peaks)


def _tpu(version: str, kind: str, memory: float, bandwidth: float, peak: float, cores=1, devices=1):
    peaks = {"bfloat16": peak, "float32": peak}
    return Device(
        f"TPU {version}", kind, "tpu", memory, bandwidth, peaks, cores=cores, per_chip=devices
    )


_A100 = r"(NVIDIA )?A100-(SXM4|PCIE)-"
DEVICES: dict[str, Device] = {
    "p100": _gpu("P100", r"Tesla P100-.*16GB", "6.0", 16, 732, float32=9.3, float16=18.7),
    "v100": _gpu("V100", r"Tesla V100-SXM2-16GB", "7.0", 16, 900, float32=15.7, float16=125),
    "v100-32gb": _gpu("V100", r"Tesla V100-SXM2-32GB", "7.0", 32, 900, float32=15.7, float16=125),
    "t4": _gpu("T4", r"Tesla T4|NVIDIA T4", "7.5", 16, 320, float32=8.1, float16=65),
    "a100": _ampere("A100 40 GB", _A100 + "40GB", "8.0", 40, 1555, half=312.0),
    "a100-80gb": _ampere(
        "A100 80 GB", _A100 + "80GB|NVIDIA A100 80GB PCIe", "8.0", 80, 2039, half=312.0
    ),
    "l4": _ampere("L4", r"NVIDIA L4", "8.9", 24, 300, half=121.0),
    "l40s": _ampere("L40S", r"NVIDIA L40S", "8.9", 48, 864, half=362.05),
    "rtx3090": _ampere("RTX 3090", r"NVIDIA GeForce RTX 3090", "8.6", 24, 936, half=71.0),
    "rtx4090": _ampere("RTX 4090", r"NVIDIA GeForce RTX 4090", "8.9", 24, 1008, half=165.2),
    "rtx5090": _ampere("RTX 5090", r"NVIDIA GeForce RTX 5090", "12.0", 32, 1792, half=209.5),
    "h100": _ampere("H100 SXM", r"NVIDIA H100 80GB HBM3", "9.0", 80, 3350, half=989.4),
    "h100-pcie": _ampere("H100 PCIe", r"NVIDIA H100 PCIe", "9.0", 80, 2000, half=756.5),
    "h100-nvl": _ampere("H100 NVL", r"NVIDIA H100 NVL", "9.0", 94, 3900, half=835.5),
    "h200": _ampere("H200 SXM", r"NVIDIA H200", "9.0", 141, 4800, half=989.4),
    "h200-nvl": _ampere("H200 NVL", r"NVIDIA H200 NVL", "9.0", 141, 4800, half=835.5),
    "v2": _tpu("v2", r"TPU v2", 16, 700, 45.0, cores=2, devices=2),
    "v3": _tpu("v3", r"TPU v3", 32, 900, 123.0, cores=2, devices=2),
    "v4": _tpu("v4", r"TPU v4", 32, 1228, 275.0, cores=2),
    "v5e": _tpu("v5e", r"TPU v5 lite|TPU v5e", 16, 819, 197.0),
    "v5p": _tpu("v5p", r"TPU v5|TPU v5p", 95, 2765, 459.0, cores=2),
    "v6e": _tpu("v6e", r"TPU v6 lite|TPU v6e", 32, 1640, 918.0),
    "tpu7x": _tpu("7x", r"TPU7x", 192, 7380, 2307.0, cores=2, devices=2),
}


def find_device(name: str) -> Device:
    """The entry of a name such as `t4`.

    Raises:
      ConfigError: there is none; it names near ones.
    """
    return builders.choose(DEVICES, name.lower(), "device")


def listed(device: Any) -> Device | None:
    """The entry of a device of jax, made for what jax counts as one; None if it has none."""
    for entry in DEVICES.values():
        if re.fullmatch(entry.kind, device.device_kind):
            if entry.platform == "gpu":
                return entry
            cores = getattr(device, "num_cores", None)
            return dataclasses.replace(entry, per_chip=entry.cores // cores) if cores else None
    return None
