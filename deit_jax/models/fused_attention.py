"""Fused attention for the short sequences of image transformers, as TPU kernels in Pallas.

A grid step holds one or a few images whole on the chip: the rows of the qkv product go in as
they are, the rows of the output product's input come out, and scores and weights [T, T] never
reach HBM. Nothing is split, transposed or padded around the kernels, and the gradient is one
array in the layout of qkv. The backward kernel computes the weights anew, so qkv is all that is
saved for it.

Scores, softmax and sums are f32; the weights are rounded to the compute type before they
multiply values, as in XLA's path. Only a head size of 64 is supported, which is that of every
published DeiT: its scale is 1/8, exact in any type.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas
from jax.experimental.pallas import tpu
from jax.sharding import PartitionSpec

from deit_jax.models import layers

HEAD = 64
_LANES = 128
_SCALE = HEAD**-0.5
# An image of 448 pixels; what still fits the 16 MiB on a TPU v4's chip.
_TOKENS = 785
_ROWS, _ROWS_SIZE = (4, 2), 2 * 200 * 384
_TWO_BUFFERS = 578 * 768
# Tokens up to which all heads of a grid step are one straight program.
_UNROLLED = 256
# Contracted axes of a product of matrices: a b', a b.
_NT, _NN = ((1,), (1,)), ((1,), (0,))


def obstacle(tokens: int, dim: int, num_heads: int, dtype: Any, device: Any) -> str | None:
    """Why these kernels cannot run on a device on [B, tokens, 3 dim]; None if they can."""
    if device.platform != "tpu" or jnp.dtype(dtype) != jnp.bfloat16:
        return "needs a TPU and bfloat16"
    if dim != num_heads * HEAD:
        return f"needs heads of {HEAD}, not {dim // num_heads}"
    if tokens > _TOKENS or tokens * dim > _TOKENS * 768:
        return f"takes up to {_TOKENS} tokens of 768, not {tokens} of {dim}"
    return None


def attend(product: jax.Array, bias: jax.Array, num_heads: int) -> jax.Array:
    """softmax(q k' / 8) v of qkv = product [B, T, 3 D] + bias [3 D] -> [B, T, D] in its type.

    Under `sharding.on_rows` each device does its own rows; differentiable once.
    """
    assert product.shape[-1] == 3 * num_heads * HEAD, (product.shape, num_heads)
    return run(product, bias, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def run(product: jax.Array, bias: jax.Array, interpret: bool) -> jax.Array:
    """As `attend`; `interpret` runs the kernels as plain operations, on any hardware, slowly."""
    return _run_forward(product, bias, interpret)[0]


def _run_forward(
    product: jax.Array, bias: jax.Array, interpret: bool
) -> tuple[jax.Array, jax.Array]:
    with jax.named_scope("qkv"):
        qkv = layers.add(product, bias)
    return _forward(qkv, interpret=interpret), qkv


def _run_backward(
    interpret: bool, qkv: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    to_product, to_bias = _backward(qkv, gradient, interpret=interpret)
    return to_product, to_bias.sum((0, 1))


run.defvjp(_run_forward, _run_backward)


def _sharded_over_rows(function: Callable) -> Callable:
    """`function` of arrays [B, T, D], of which each device of the mesh in use does its own rows.

    Where the devices do not divide B, the last ones do fewer.

    The compiler cannot look into a kernel. `custom_partitioning`, which would need no mesh, is
    not in libtpu.
    """

    def by_rows(*arrays: jax.Array, interpret: bool) -> Any:
        own = functools.partial(function, interpret=interpret)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty:
            return own(*arrays)
        batch, rows = len(arrays[0]), PartitionSpec(mesh.axis_names)
        # Rows of zeros fill up what the devices do not share equally: 0 to 0 attends evenly.
        more = ((0, -batch % mesh.size), (0, 0), (0, 0))
        padded = [jnp.pad(array, more) for array in arrays] if more[0][1] else arrays
        results = jax.shard_map(
            own, mesh=mesh, in_specs=(rows,) * len(arrays), out_specs=rows, check_vma=False
        )(*padded)
        return jax.tree.map(lambda result: result[:batch], results)

    return by_rows


def _call(
    kernel: Callable, arrays: tuple, results: list, products: int, interpret: bool
) -> list[jax.Array]:
    """`kernel` of `arrays` [B, T, ...] -> `results` [B, ...]; `products` of T x T x 64 a head."""
    batch, tokens, dim = arrays[0].shape[0], arrays[0].shape[1], arrays[0].shape[2] // 3
    several = [n for n in _ROWS if batch % n == 0 and n * tokens * dim <= _ROWS_SIZE]
    rows = several[0] if several else 1
    # Two buffers per block let copies and arithmetic overlap; the largest images have no room.
    buffers = pallas.Buffered(2 if rows * tokens * dim <= _TWO_BUFFERS else 1)
    specs = [
        pallas.BlockSpec((rows, *x.shape[1:]), lambda i: (i, 0, 0), pipeline_mode=buffers)
        for x in (*arrays, *results)
    ]
    return pallas.pallas_call(
        kernel,
        grid=(batch // rows,),
        in_specs=specs[: len(arrays)],
        out_specs=specs[len(arrays) :],
        out_shape=results,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel",)),
        cost_estimate=pallas.CostEstimate(
            flops=2 * products * batch * tokens**2 * dim,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *results)),
            transcendentals=batch * tokens**2 * dim // HEAD,
        ),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*arrays)


def _product(a: jax.Array, b: jax.Array, contracted: Any) -> jax.Array:
    return jax.lax.dot_general(a, b, (contracted, ((), ())), preferred_element_type=jnp.float32)


def _scaled(x: jax.Array) -> jax.Array:
    return x * jnp.asarray(_SCALE, x.dtype)


def _forward_kernel(qkv: Any, out: Any) -> None:
    """One grid step: refs qkv [rows, T, 3 D] -> out [rows, T, D]."""
    dim = out.shape[2]

    def mix(row: int, at: Any, width: int) -> None:
        query, key, value = (qkv[row, :, lanes] for lanes in _parts(at, width, dim))
        query = _scaled(query)
        lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
        heads = []
        for first in range(0, width, HEAD):
            # Zeros in the other head's lanes instead of cutting them off, which would move every
            # register: the matrix unit takes as long for 64 lanes as for 128.
            others = (lane < first) | (lane >= first + HEAD)
            own = query if width == HEAD else jnp.where(others, jnp.zeros_like(query), query)
            scores = _product(own, key, _NT)
            shares = jnp.exp(scores - scores.max(1, keepdims=True))
            head = _product(shares.astype(value.dtype), value, _NN)
            heads.append(head / shares.sum(1, keepdims=True))
        mixed = heads[0] if width == HEAD else jnp.where(lane < HEAD, *heads)
        out[row, :, pallas.ds(at, width)] = mixed.astype(out.dtype)

    _for_all_heads(mix, out.shape)


def _backward_kernel(qkv: Any, gradient: Any, out: Any, sums: Any) -> None:
    """One grid step: refs qkv [rows, T, 3 D], gradient [rows, T, D] -> out [rows, T, 3 D].

    `sums` f32 [rows, 1, 3 D] are those of `out` over tokens, before it is rounded.
    Weights are [keys, queries]: sums over keys then run down the registers, not across lanes.
    """
    dim = gradient.shape[2]

    def differentiate(row: int, at: Any, width: int) -> None:
        lanes = _parts(at, width, dim)
        whole = (*(qkv[row, :, part] for part in lanes), gradient[row, :, pallas.ds(at, width)])
        heads = []
        for first in range(0, width, HEAD):
            query, key, value, above = (x[:, first : first + HEAD] for x in whole)
            query = _scaled(query)
            scores = _product(key, query, _NT)
            shares = jnp.exp(scores - scores.max(0, keepdims=True))
            shares = shares * (1.0 / shares.sum(0, keepdims=True))
            change = _product(value, above, _NT)
            change = shares * (change - (shares * change).sum(0, keepdims=True))
            change = change.astype(qkv.dtype)
            to_value = _product(shares.astype(qkv.dtype), above, _NN)
            to_key = _product(change, query, _NN)
            to_query = _product(_scaled(key).T, change, _NN).T
            heads.append((to_query, to_key, to_value))
        for part, values in zip(lanes, zip(*heads, strict=True), strict=True):
            out[row, :, part] = jnp.concatenate([x.astype(out.dtype) for x in values], axis=1)
            totals = [x.sum(0, keepdims=True) for x in values]
            sums[row, :, part] = jnp.concatenate(totals, axis=1)

    _for_all_heads(differentiate, gradient.shape)


def _for_all_heads(body: Callable, shape: tuple[int, int, int]) -> None:
    """`body(row, first lane, lanes)` for every head of [rows, T, D], two at once where aligned.

    Short sequences are unrolled, which overlaps the heads; long ones are a loop, which bounds
    the memory on the chip and the size of the program.
    """
    rows, tokens, dim = shape
    width = _LANES if dim % _LANES == 0 else HEAD
    for row in range(rows):
        if tokens <= _UNROLLED or width == HEAD:
            for at in range(0, dim, width):
                body(row, at, width)
        else:
            loop = lambda i, _, row=row: body(row, pallas.multiple_of(i * width, width), width)
            jax.lax.fori_loop(0, dim // width, loop, None)


def _parts(at: Any, width: int, dim: int) -> list[Any]:
    """The lanes of queries, keys and values of the heads from lane `at` on in a row of qkv."""
    return [pallas.ds(part * dim + at, width) for part in range(3)]


def forward_rows(qkv: jax.Array, interpret: bool) -> jax.Array:
    """The kernel of `attend` on the rows of one device, [B, T, 3 D] -> [B, T, D]."""
    batch, tokens, width = qkv.shape
    result = jax.ShapeDtypeStruct((batch, tokens, width // 3), qkv.dtype)
    return _call(_forward_kernel, (qkv,), [result], 2, interpret)[0]


def backward_rows(qkv: jax.Array, gradient: jax.Array, interpret: bool) -> list[jax.Array]:
    """The kernel of its gradient, [B, T, 3 D] and [B, T, D] -> [B, T, 3 D], sums [B, 1, 3 D]."""
    batch, _, width = qkv.shape
    results = [
        jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
        jax.ShapeDtypeStruct((batch, 1, width), jnp.float32),
    ]
    return _call(_backward_kernel, (qkv, gradient), results, 5, interpret)


_forward = _sharded_over_rows(forward_rows)
_backward = _sharded_over_rows(backward_rows)
