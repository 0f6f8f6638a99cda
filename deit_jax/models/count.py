"""Sizes and costs, read off a trace of the model itself."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core


class Size(NamedTuple):
    """Size of a model, and cost of one image.

    Attributes:
      parameters: trained ones; running statistics of BatchNorm are not among them.
      macs: multiply-accumulates of one image's evaluation, in matrix products (attention's
        too) and convolutions alone. Papers call them "FLOPs", but each is two operations.
    """

    parameters: int
    macs: int


class Trace(NamedTuple):
    """Size of a model, output values of its products and convolutions, collections of variables."""

    size: Size
    outputs: int
    collections: frozenset[str]


def _trace(model: Any) -> Trace:
    image = jnp.zeros((1, *model.image_size, 3), jnp.float32)
    # Initialization runs the model once, so one trace gives both.
    jaxpr, variables = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), image)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    macs, outputs = _products(jaxpr.jaxpr)
    return Trace(Size(parameters, macs), outputs, frozenset(variables))


# Of a flax module that takes images; computes nothing. Remembered, as modules are hashable, which
# their types do not say.
trace: Callable[[Any], Trace] = functools.cache(_trace)


def _products(jaxpr: Any) -> tuple[int, int]:
    """(multiply-accumulates, output values) of all matrix products and convolutions."""
    macs = outputs = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            per_output = math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            out_axis = equation.params["dimension_numbers"].rhs_spec[0]
            per_output = math.prod(kernel) // kernel[out_axis]
        else:
            inner = [_products(program) for program in programs_in(equation.params)]
            # Of branches one is run, such as that of a platform.
            for more_macs, more_outputs in [max(inner)] if name == "cond" else inner:
                macs, outputs = macs + more_macs, outputs + more_outputs
            continue
        size = math.prod(equation.outvars[0].aval.shape)
        macs, outputs = macs + size * per_output, outputs + size
    return macs, outputs


def programs_in(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters, as of a call, a branch or a loop's body."""
    # `jax.extend.core.jaxprs_in_params` is younger than the oldest jax that is supported.
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
