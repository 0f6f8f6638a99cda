"""What a training step costs: multiply-accumulates, and memory per device (an upper estimate)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from deit_jax import models, trees
from deit_jax.optim import param_groups

# Values per token and unit of width that one block saves for the backward pass, in f32 and
# in half precision (whose LayerNorms save f32, counted double): residuals of `jax.vjp`.
_SAVED_PER_BLOCK = {"none": (28.0, 34.0), "dots": (9.0, 9.0), "full": (1.0, 1.0)}
# Outputs of convolutions (those of size 1 are matrix products) are kept before and after
# BatchNorm and after the activation.
_KEPT_PER_LAYER = 3.0


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
    model: models.Model, *, batch_size: int, teacher: models.Model | None = None
) -> dict[str, float]:
    """Multiply-accumulates of one training step over the whole batch, {'student', 'teacher'}.

    The student's backward pass is counted as two forward passes and `remat='full'` as one
    more; augmentation and optimizer are not counted.
    """
    passes = 4 if getattr(model, "remat", "none") == "full" else 3
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
        "activations": rows * activation_bytes(model),
    }
    return Memory({name: float(size) for name, size in parts.items() if size})


def activation_bytes(model: models.Model) -> float:
    """Bytes that one image's forward pass saves for the backward pass (upper estimate)."""
    itemsize = jnp.dtype(model.dtype).itemsize
    if isinstance(model, models.VisionTransformer):
        tokens = math.prod(model.grid) + 1 + model.distilled
        saved = _SAVED_PER_BLOCK[model.remat][itemsize < 4]
        per_block = saved * tokens * model.embed_dim * itemsize
        fused = model.attention == "cudnn" or (model.attention == "auto" and itemsize < 4)
        if model.remat == "none" and not fused:
            # Scores in f32 and weights.
            per_block += model.num_heads * tokens**2 * (4 + itemsize)
        return model.depth * per_block
    shapes = jax.eval_shape(lambda: models.init_variables(model, jax.random.key(0)))
    image = jax.ShapeDtypeStruct((1, *model.image_size, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda v, x: models.apply(model, v, x).logits)(shapes, image).jaxpr
    return _KEPT_PER_LAYER * _layer_outputs(jaxpr) * itemsize


def _layer_outputs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            total += math.prod(equation.outvars[0].aval.shape)
        for inner in core.jaxprs_in_params(equation.params):
            total += _layer_outputs(inner)
    return total
