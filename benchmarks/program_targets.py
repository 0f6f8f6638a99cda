"""Accelerators to compile for that are not there: TPU topologies, and GPUs by description.

TPU   `pip install "jax[tpu]"`
GPU   `pip install "jax[cuda12]"`; neither a driver nor a GPU is needed
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax

from deit_jax.recipe import devices as devices_lib

# What the compilers want to know before they are loaded. They ask nobody; the process itself
# computes on the CPU. Several may compile at a time: libtpu's lock is for a device.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # jax's CUDA plugin looks for a driver when it is loaded; its compiler needs none.
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}
# Without a device nothing can be tried out: without the second flag no tile sizes are found.
_XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"

_MEGACORE = {"chip_config_name": "megacore"}
# Name -> arguments of jax's description of a TPU topology, and its chip in `recipe.devices`.
_TPUS: dict[str, tuple[str, dict[str, Any]]] = {
    "v5e-1": ("v5e", {"topology_name": "v5e:1x1", "chips_per_host_bounds": (1, 1, 1)}),
    "v5e-4": ("v5e", {"topology_name": "v5e:2x2"}),
    "v5e-256": ("v5e", {"topology_name": "v5e:16x16"}),
    "2xv5e-16": ("v5e", {"topology_name": "v5e:4x4", "num_slices": 2}),
    "v4-8": ("v4", {"topology_name": "v4:2x2x1", **_MEGACORE}),
    "v4-128": ("v4", {"topology_name": "v4:4x4x4", **_MEGACORE}),
    "v5p-8": ("v5p", {"topology_name": "v5p:2x2x1", **_MEGACORE}),
    "v5p-128": ("v5p", {"topology_name": "v5p:4x4x4", **_MEGACORE}),
    "v6e-4": ("v6e", {"topology_name": "v6e:2x2"}),
    "v6e-256": ("v6e", {"topology_name": "v6e:16x16"}),
}
# Clock of a TPU's cores in GHz, which turns its compiler's cycles into time: peak FLOP/s over
# what the matrix units of a chip do in a cycle (v4 8, v5e 4, v5p 8 units of 128 x 128, v6e 2 of
# 256 x 256 per core).
CLOCK_GHZ = {"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75}


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """What XLA asks of a GPU beyond `recipe.devices`; NVIDIA's CUDA C++ guide and data sheets.

    Attributes:
      cores: streaming multiprocessors, each with `units` f32 units at `clock` GHz.
      threads: that a core holds.
      shared, most_shared: bytes of shared memory of a core, and of one block by request.
      cache: bytes of the L2 cache.
    """

    cores: int
    units: int
    clock: float
    threads: int
    shared: int
    most_shared: int
    cache: int


_GPUS = {
    "h100": _Gpu(132, 128, 1.98, 2048, 233_472, 232_448, 52_428_800),
    "a100": _Gpu(108, 64, 1.41, 2048, 167_936, 166_912, 41_943_040),
    "l4": _Gpu(58, 128, 2.04, 1536, 102_400, 101_376, 50_331_648),
    "t4": _Gpu(40, 64, 1.59, 1024, 65_536, 65_536, 4_194_304),
}
TARGETS = (*_TPUS, *_GPUS)


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: of `TARGETS`.
      platform: tpu or gpu.
      chip: the entry of `recipe.devices`.
      devices: of jax, to compile for only.
      ghz: clock of a TPU's cores; None of a GPU, whose compiler does not count cycles.
    """

    name: str
    platform: str
    chip: devices_lib.Device
    devices: Sequence[Any]
    ghz: float | None

    @contextlib.contextmanager
    def asked_for(self) -> Iterator[None]:
        """Within it the library makes programs for these devices."""
        with mock.patch.object(jax, "devices", lambda: list(self.devices)):
            yield


def prepare(environment: Mapping[str, str] = ENVIRONMENT) -> None:
    """Sets the environment of a process that compiles; before jax is used."""
    os.environ |= environment
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()


def open_target(name: str) -> Target:
    """The devices of a name of `TARGETS`."""
    from jax.experimental import topologies

    if name in _GPUS:
        chip = devices_lib.DEVICES[name]
        description = {"target_config": _gpu_text(chip, _GPUS[name]), "topology": "1x1x1"}
        found = topologies.get_topology_desc(platform="cuda", **description).devices
        return Target(name, "gpu", chip, found, None)
    chip, description = _TPUS[name]
    found = topologies.get_topology_desc(platform="tpu", **description).devices
    return Target(name, "tpu", devices_lib.DEVICES[chip], found, CLOCK_GHZ[chip])


def _gpu_text(chip: devices_lib.Device, gpu: _Gpu) -> str:
    """XLA's GpuTargetConfigProto as text."""
    major, minor = chip.compute_capability.split(".")
    fields = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": gpu.shared,
        "shared_memory_per_block_optin": gpu.most_shared,
        "threads_per_core_limit": gpu.threads,
        "core_count": gpu.cores,
        "fpus_per_core": gpu.units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "memory_bandwidth": int(chip.bandwidth * 1e9),
        "l2_cache_size": gpu.cache,
        "clock_rate_ghz": gpu.clock,
        "device_memory_size": int(chip.memory * 1e9),
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
    }
    listed = "\n".join(f"{name}: {value}" for name, value in fields.items())
    capability = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
    return (
        f"gpu_device_info {{\n{listed}\n{capability}\n"
        'runtime_version: "12.9.0"\ndriver_version: "12.9.0"\n}\n'
        'platform_name: "CUDA"\ndnn_version_info { major: 9 minor: 10 }\n'
        f'device_description_str: "{chip.title}"\n'
    )
