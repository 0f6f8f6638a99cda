"""What a recipe's augmentation makes of some training images."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from deit_jax.augment import Supplied, make_augment, make_eval_transform


def originals(batch: dict[str, Any], size: int) -> np.ndarray:
    """uint8 [n, size, size, 3] of a host batch: short side resized, center cropped."""
    transform = make_eval_transform(
        image_size=size, crop_ratio=1.0, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255)
    )
    return np.round(transform(batch)).astype(np.uint8)


def draws(
    batch: dict[str, Any],
    options: Mapping[str, Any],
    size: int,
    num_classes: int,
    *,
    count: int,
    seed: int,
) -> np.ndarray:
    """uint8 [count, n, size, size, 3] of a host batch of n images, each draw a mix group.

    Args:
      options: an `augment` section.
    """
    images = len(batch["label"])
    options = dict(options) | {"mix_group": images}
    supplied = Supplied(size, num_classes, batch_size=images * count, repeats=count)
    augment = jax.jit(make_augment(supplied, **options))
    arrays = {name: batch[name] for name in ("canvas", "size", "label")}
    canvas_index = np.tile(np.arange(images, dtype=np.int32), count)
    out = augment(jax.random.key(seed), arrays | {"canvas_index": canvas_index})
    levels = np.asarray(out["image"]) * np.float32(options["std"]) + np.float32(options["mean"])
    levels = np.round(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    return levels.reshape(count, images, size, size, 3)
