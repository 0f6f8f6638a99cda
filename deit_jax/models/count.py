"""Sizes and costs, read off the model itself."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from deit_jax.models.deit import VisionTransformer
from deit_jax.models.regnet import RegNet


def count_parameters(model: VisionTransformer | RegNet) -> int:
    """Trained parameters; running statistics of BatchNorm are not among them."""
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), _image(model)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract["params"]))


def count_macs(model: VisionTransformer | RegNet) -> int:
    """Multiply-accumulates of one image's evaluation: matrix products and convolutions.

    Attention's products are counted; LayerNorm, GELU, softmax and biases are not. Papers
    print this number as "FLOPs"; one multiply-accumulate is two floating-point operations.
    """
    # XLA's attention is made of plain products, which the fused kernels hide.
    plain = {"attention": "xla", "scan": False} if isinstance(model, VisionTransformer) else {}
    model = model.clone(**plain)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), _image(model)))
    return _macs(jax.make_jaxpr(model.apply)(variables, _image(model)).jaxpr)


def _image(model: VisionTransformer | RegNet) -> jax.Array:
    return jnp.zeros((1, *model.image_size, 3), jnp.float32)


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
