"""What a training step costs: multiply-accumulates, and memory per device (an upper estimate)."""

import dataclasses
import math
from typing import Any

import jax

from deit_jax import data, models
from deit_jax.distributed import sharding
from deit_jax.recipe.recipe import Recipe
from deit_jax.teacher.model import Ensemble

# Batches of canvases on the device at a time: the one in use and the next.
_CANVAS_BATCHES = 2


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they hold.

    An upper estimate: the compiler's fusions recompute some activations instead of
    keeping them.
    """

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.parts.values())


def step_macs(
    model: models.Model,
    *,
    batch_size: int,
    teacher: models.Model | Ensemble | None = None,
    recomputed: bool = True,
) -> dict[str, float]:
    """Multiply-accumulates of one training step over the whole batch, {'student', 'teacher'}.

    The student's backward pass is counted as two forward passes, and what it computes again
    as one more if `recomputed`; augmentation and optimizer are not counted.
    """
    passes = 3 + (model.recomputed_passes if recomputed else 0)
    macs = {"student": float(passes * model.count().macs * batch_size)}
    if teacher is not None:
        macs["teacher"] = float(teacher.count().macs * batch_size)
    return macs


def step_memory(recipe: Recipe) -> Memory:
    """Memory of one training step on one device; state is read off abstract values."""
    config, model, devices = recipe.config, recipe.model, recipe.device_count
    batch_size = recipe.durations.batch_size
    rows = math.ceil(batch_size / devices / config.step.accum_steps)
    canvases = data.canvas_count(batch_size, config.input.repeats, devices) / devices
    params = _state_bytes(recipe.params, config.mesh.fsdp)
    optimizer = jax.eval_shape(recipe.tx.init, recipe.params)
    teacher = recipe.teacher and recipe.teacher.model
    parts = {
        "parameters": params,
        "gradients": params,
        "optimizer state": _state_bytes(optimizer, config.mesh.fsdp),
        "EMA": params if config.step.ema_decay else 0,
        "teacher": 4 * teacher.count().parameters if teacher else 0,
        "canvases and images": _CANVAS_BATCHES * canvases * config.input.canvas**2 * 3
        + rows * math.prod(model.image_size) * 3 * 4,
        "activations": rows * model.saved_bytes(recipe.device),
        "one block again": rows * model.recomputed_bytes(recipe.device),
    }
    return Memory({name: float(size) for name, size in parts.items() if size})


def _state_bytes(tree: Any, fsdp: int) -> float:
    """Bytes per device of arrays that are sharded over `fsdp` devices where they can be."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        parts = 1 if sharding.sharded_axis(leaf.shape, fsdp) is None else fsdp
        total += leaf.size * leaf.dtype.itemsize / parts
    return total
