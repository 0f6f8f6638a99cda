"""Augmentation on the device: timm's training recipe and Pillow's pixels, in JAX.

Pure functions of (key, batch) that run inside the training step on CPU, GPU and TPU.
"""

from deit_jax.augment.mix import resolve_mix_group
from deit_jax.augment.pipeline import make_augment, make_eval_transform

__all__ = ["make_augment", "make_eval_transform", "resolve_mix_group"]
