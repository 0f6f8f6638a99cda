"""What an accelerator computes well: the type that `dtype="auto"` stands for.

A device is one of `jax.devices()`, or whatever has its `platform` and, on a GPU, its
`compute_capability` ('8.0').

    TPU                                     bfloat16
    GPU of compute capability 8.0 or more   bfloat16
    everything else                         float32

GPUs before 8.0 (P100, V100, T4) have no bf16 units, so bf16 would be slower than f32 there,
and cuDNN's fused attention does not run on them. Their fast type is float16, which needs a
scaled loss (`deit_jax.train.loss_scale`) and so has to be asked for.
"""

import re
from typing import Any

import jax

from deit_jax.errors import ConfigError, unknown

DTYPES = ("auto", "float32", "bfloat16", "float16")
# The compute capability from which on a GPU has bf16 units and cuDNN's fused attention.
_AMPERE = (8, 0)
_GPU = ("gpu", "cuda")


def resolve_dtype(dtype: str, device: Any = None) -> str:
    """The name of a compute type, `auto` replaced by that of a device (jax's first by default).

    Raises:
      ConfigError: an unknown type.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if dtype != "auto":
        return dtype
    device = device or jax.devices()[0]
    return "bfloat16" if device.platform == "tpu" or is_ampere(device) else "float32"


def require(platform: str) -> Any:
    """jax's first device, which must be a `gpu`, a `tpu` or the `cpu`.

    Raises:
      ConfigError: it is something else; the message says what to do about it.
    """
    device = jax.devices()[0]
    found = "gpu" if device.platform in _GPU else device.platform
    if found == platform:
        return device
    if platform == "cpu":
        return jax.devices("cpu")[0]
    menu = {"gpu": "T4 GPU", "tpu": "v5e-1 TPU"}
    if platform not in menu:
        raise unknown("accelerator", platform, [*menu, "cpu"])
    raise ConfigError(
        f"jax {jax.__version__} computes on {describe(device)}, not on a {platform.upper()}: in "
        f"Colab choose Runtime > Change runtime type > {menu[platform]}, then run all cells; if "
        "that is chosen, a newer jax was installed over Colab's: Runtime > Disconnect and delete"
    )


def describe(device: Any) -> str:
    """`Tesla T4 (compute capability 7.5)`."""
    capability = getattr(device, "compute_capability", None)
    kind = getattr(device, "device_kind", device.platform)
    return f"{kind} (compute capability {capability})" if capability else kind


def is_ampere(device: Any) -> bool:
    """Whether it is an NVIDIA GPU of compute capability 8.0 or more; AMD's are named 'gfx90a'."""
    if device.platform not in _GPU:
        return False
    numbers = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    return numbers is not None and tuple(map(int, numbers.groups())) >= _AMPERE
