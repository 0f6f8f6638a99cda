"""How fast others, and models on paper, trained a ViT of 16 x 16 patches at 224 pixels.

Not readings of this library: of an accelerator, those are still to be made. They distinguish
hours from days before anything is rented. Without a teacher, which costs more (`explain` counts
it), and all in half precision.
"""

from typing import NamedTuple


class Reading(NamedTuple):
    """Images per second of one device, or TPU chip; `source` says what kind of number it is."""

    device: str
    embed_dim: int
    images_per_second: float
    source: str


_DEIT = "the paper's 8 GPUs, 300 epochs in 53 hours (arXiv 2012.12877, section 5.6)"
_BIG_VISION = "big_vision on v3-8, 90 epochs in 6.5 hours (arXiv 2205.01580)"
_DEIT3_JAX = "deit3-jax on v4-64, its README, 300 epochs"
_TOOLBOX = "NVIDIA JAX-Toolbox, T5X ViT on 8 GPUs, 2023"
_SUBQUADRATIC = "NVIDIA nvSubquadratic, a torch.compile step alone, 2026"
_TIMM = "timm's results/benchmark-train-amp, a step alone with SGD, torch 1.12"
_COMPILER = "an estimate of the TPU compiler with attention=xla, 2026-11, not a reading"
_PALLAS = "an estimate of the TPU compiler with attention=pallas, 2026-11, not a reading"
_MODEL = "a ceiling from arithmetic and memory traffic, 2026-11, not a reading"

_TI, _S, _B = 192, 384, 768
READINGS = (
    Reading("v100", _B, 252, _DEIT),
    Reading("v100-32gb", _B, 252, _DEIT),
    Reading("a100-80gb", _B, 900, _TOOLBOX),
    Reading("rtx3090", _TI, 2290, _TIMM),
    Reading("rtx3090", _S, 1054, _TIMM),
    Reading("rtx3090", _B, 391, _TIMM),
    Reading("h100", _S, 6497, _SUBQUADRATIC),
    Reading("h100", _B, 1459, _TOOLBOX),
    Reading("h100", _B, 2669, _SUBQUADRATIC),
    Reading("h200", _TI, 41_800, _MODEL),
    Reading("h200", _S, 15_400, _MODEL),
    Reading("h200", _B, 4_880, _MODEL),
    Reading("v3", _S, 1220, _BIG_VISION),
    Reading("v4", _TI, 1251, _DEIT3_JAX),
    Reading("v4", _S, 1228, _DEIT3_JAX),
    Reading("v4", _B, 715, _DEIT3_JAX),
    Reading("v5e", _TI, 1e6 / 232, _PALLAS),
    Reading("v5e", _S, 1e6 / 947, _COMPILER),
    Reading("v5e", _B, 1e6 / 2299, _COMPILER),
)
