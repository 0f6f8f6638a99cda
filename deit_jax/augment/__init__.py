"""Augmentation on the device: timm's training recipe and Pillow's pixels, in JAX.

Pure functions of (key, batch) that run inside the training step on CPU, GPU and TPU. A batch of
canvases is cropped and flipped (`crop.py`), changed as uint8 pixels (`colors.py`), normalized,
shifted in color (`lighting.py`), erased (`erasing.py`) and mixed (`mix.py`); `pipeline.py`
composes these stages.

To add

* a stage, such as a grid mask: write a factory `make_grid_mask(supplied, *, grid_prob=0.0, ...)`
  that checks its options (ConfigError) and returns None when it is off, else a function; add one
  line to the table in `pipeline.py` whose comment has the function's signature: `PIXEL_STAGES`
  (uint8, after the crop), `IMAGE_STAGES` (normalized images) or `BATCH_STAGES` (mixed images and
  targets). The order of the table is the order of the stages. Its keyword-only parameters are
  options of `config.augment`. Its keys come from its name, `draw("grid_mask")`; no other draw
  changes.
* a crop: write a factory `crop(image_size, *, options)` that returns `axes(keys, size)`, and add
  one line to `CROPS` in `crop.py`.
* an operation: write a function of (pixels, argument) and add one line to `OPERATIONS` in
  `operations.py`. No recipe changes; a RandAugment policy draws it when
  `config.augment.operations` names it.
* a policy: write a function of the `auto_augment` string and add one line to `POLICIES` in
  `policies.py`.
* a way to fill erased boxes, or to share a draw of the mix: a function and a line in
  `ERASING_MODES` or `MIX_MODES`.

The first line of each docstring is what `deit-jax explain` prints.
"""

from deit_jax.augment.mix import resolve_mix_group
from deit_jax.augment.normalize import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.augment.pipeline import Described, describe, make_augment, make_eval_transform
from deit_jax.augment.stage import Supplied

# Raised whenever the same options and seed give other images: labels that are stored for the old
# ones are then refused.
VERSION = 1

__all__ = ["Described", "IMAGENET_MEAN", "IMAGENET_STD", "Supplied", "VERSION", "describe"]
__all__ += ["make_augment", "make_eval_transform", "resolve_mix_group"]
