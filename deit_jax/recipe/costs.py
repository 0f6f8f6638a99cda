"""What a training step costs: multiply-accumulates, and memory per device (an upper estimate)."""

import dataclasses
import math
from typing import Any

from deit_jax import models, trees
from deit_jax.optim import param_groups


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they hold.

    An upper estimate: the compiler's fusions compute some activations again instead of
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
    teacher: models.Model | None = None,
    recomputed: bool = True,
) -> dict[str, float]:
    """Multiply-accumulates of one training step over the whole batch, {'student', 'teacher'}.

    The student's backward pass is counted as two forward passes, and what it computes again
    as one more if `recomputed`; augmentation and optimizer are not counted.
    """
    passes = 3 + (model.recomputed_passes if recomputed else 0)
    macs = {"student": float(passes * models.count(model).macs * batch_size)}
    if teacher is not None:
        macs["teacher"] = float(models.count(teacher).macs * batch_size)
    return macs


def step_memory(
    model: models.Model,
    params: Any,
    *,
    rows: int,
    canvas_bytes: float,
    masks: param_groups.Masks,
    moments: int,
    ema: bool,
    fsdp: int = 1,
    teacher_parameters: int = 0,
) -> Memory:
    """Estimated memory of one training step on one device.

    Args:
      params: the student's parameters, abstract ones will do.
      rows: images that the device works on at a time, after gradient accumulation.
      canvas_bytes: bytes of the canvases that lie on the device.
      masks: which parameters are trained.
      moments: arrays that the optimizer keeps per trained parameter.
      ema: whether averaged weights are kept.
      fsdp: devices that share parameters and optimizer state.
      teacher_parameters: numbers of a teacher, kept in f32 on every device.
    """
    sizes = {path: math.prod(leaf.shape) for path, leaf in trees.named_leaves(params).items()}
    numbers = sum(sizes.values())
    trained = sum(size for path, size in sizes.items() if masks.trainable[path])
    side = model.image_size[0] * model.image_size[1]
    parts = {
        "parameters": 4 * numbers / fsdp,
        "gradients": 4 * numbers / fsdp,
        "optimizer state": 4 * moments * trained / fsdp,
        "averaged weights": 4 * numbers / fsdp if ema else 0,
        "teacher": 4 * teacher_parameters,
        "canvases and images": canvas_bytes + rows * side * 3 * 4,
        "activations": rows * model.saved_bytes(),
    }
    return Memory({name: float(size) for name, size in parts.items() if size})
