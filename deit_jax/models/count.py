"""Sizes and costs, read off the model itself."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from deit_jax.models.deit import VisionTransformer
from deit_jax.models.regnet import RegNet


class Size(NamedTuple):
    """What a model weighs and what one image costs.

    Attributes:
      parameters: trained ones; running statistics of BatchNorm are not among them.
      macs: multiply-accumulates of one image's evaluation, in matrix products (attention's
        too) and convolutions; LayerNorm, GELU, softmax and biases are not counted. Papers
        print this number as "FLOPs", but one is two floating-point operations.
    """

    parameters: int
    macs: int


@functools.lru_cache
def count(model: VisionTransformer | RegNet) -> Size:
    """Counts by tracing; nothing is computed."""
    if isinstance(model, RegNet):
        return _traced(model)
    # XLA's attention is made of plain products, which the fused kernels hide. Blocks are
    # all alike: two short models tell what any depth has.
    model = model.clone(attention="xla", scan=False, remat="none")
    one, two = (_traced(model.clone(depth=depth)) for depth in (1, 2))
    return Size(*(a + (model.depth - 1) * (b - a) for a, b in zip(one, two)))


def _traced(model: Any) -> Size:
    image = jnp.zeros((1, *model.image_size, 3), jnp.float32)
    # Initialisation runs the model once, so one trace tells both.
    jaxpr, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), image)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return Size(parameters, _macs(jaxpr.jaxpr))


def _macs(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = math.prod(left[axis] for axis in contracted)
            total += math.prod(equation.outvars[0].aval.shape) * depth
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            per_output = math.prod(kernel) // kernel[out_axis]
            total += math.prod(equation.outvars[0].aval.shape) * per_output
        for inner in core.jaxprs_in_params(equation.params):
            total += _macs(inner)
    return total
