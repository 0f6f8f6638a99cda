"""Implementations of attention, from the output of the fused qkv product.

A new one is a function `[B, T, 3 D], [3 D], num_heads -> [B, T, D]`, one that says where it
cannot run, and a line in `ATTENTION`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deit_jax.errors import ConfigError, unknown
from deit_jax.models import accelerator, fused_attention, layers

_ALIGNED = 8


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
      attend: the product of qkv [B, T, 3 D] (queries, keys, values, each head by head), its
        bias f32 [3 D], and the number of heads -> [B, T, D], in the type of the product. The
        bias is apart because its gradient is a sum that some take in passing.
      obstacle: tokens T, width D, number of heads, compute type and device (see `accelerator`)
        -> why this implementation cannot run there, or None.
    """

    attend: Callable[[jax.Array, jax.Array, int], jax.Array]
    obstacle: Callable[[int, int, int, Any, Any], str | None]


def _split(qkv: jax.Array, num_heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B, T, 3 D] -> queries, keys, values [B, T, H, d]."""
    rows, tokens, width = qkv.shape
    qkv = qkv.reshape(rows, tokens, 3, num_heads, width // (3 * num_heads))
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def weights(qkv: jax.Array, num_heads: int) -> jax.Array:
    """softmax(query key' / sqrt(d)): qkv [B, T, 3 D] -> f32 [B, H, T, T]."""
    query, key, _ = _split(qkv, num_heads)
    scores = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)


def _xla(product: jax.Array, bias: jax.Array, num_heads: int) -> jax.Array:
    qkv = layers.add(product, bias)
    tokens = qkv.shape[1]
    if qkv.dtype.itemsize < 4:
        # For a GPU every operand of a product would be padded to multiples of 8; here once.
        qkv = _padded(qkv, -tokens % _ALIGNED)
    query, key, value = (x.swapaxes(1, 2) for x in _split(qkv, num_heads))
    return _mixed(query, key, value, tokens)


def _padded(x: jax.Array, more: int) -> jax.Array:
    """`x` [B, T, ...] with zeros for more tokens."""
    return jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2)) if more else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _mixed(query: jax.Array, key: jax.Array, value: jax.Array, tokens: int) -> jax.Array:
    """softmax(query key' / sqrt(d)) value of [B, H, T', d] -> [B, T, H d] of T <= T' tokens."""
    return _mixed_forward(query, key, value, tokens)[0]


def _mixed_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, tokens: int
) -> tuple[jax.Array, tuple]:
    scores = jnp.einsum("bhtd,bhsd->bhts", query, key, preferred_element_type=jnp.float32)
    scores *= query.shape[-1] ** -0.5
    if tokens < key.shape[2]:
        keys = jax.lax.broadcasted_iota(jnp.int32, (1, 1, 1, key.shape[2]), 3)
        scores = jnp.where(keys < tokens, scores, -jnp.inf)
    # Fused with what uses them they would be made again from scores in f32, which would be kept.
    shares = jax.lax.optimization_barrier(jax.nn.softmax(scores, axis=-1).astype(value.dtype))
    mixed = jnp.einsum("bhts,bhsd->bhtd", shares, value).swapaxes(1, 2)[:, :tokens]
    mixed = mixed.reshape(*mixed.shape[:2], -1)
    return mixed, (query, key, value, shares, mixed)


def _mixed_backward(tokens: int, saved: tuple, gradient: jax.Array) -> tuple:
    """As fused kernels do: products in the compute type, and the softmax's sums from the result.

    Only the weights in the compute type are saved of all that is [T, T].
    """
    query, key, value, shares, mixed = saved
    rows, heads, padded, size = query.shape

    def by_head(x: jax.Array) -> jax.Array:
        return _padded(x.reshape(rows, tokens, heads, -1), padded - tokens).swapaxes(1, 2)

    inner = gradient.astype(jnp.float32) * mixed.astype(jnp.float32)
    inner = by_head(inner.reshape(rows, tokens, heads, size).sum(-1))
    gradient = by_head(gradient)
    change = jnp.einsum("bhtd,bhsd->bhts", gradient, value).astype(jnp.float32) - inner
    change = (shares.astype(jnp.float32) * change * size**-0.5).astype(query.dtype)
    return (
        jnp.einsum("bhts,bhsd->bhtd", change, key),
        jnp.einsum("bhts,bhtd->bhsd", change, query),
        jnp.einsum("bhts,bhtd->bhsd", shares, gradient),
    )


_mixed.defvjp(_mixed_forward, _mixed_backward)


def _cudnn(product: jax.Array, bias: jax.Array, num_heads: int) -> jax.Array:
    qkv = layers.add(product, bias)
    # No mask and no bias: only then does cuDNN take odd lengths (197, 577).
    out = jax.nn.dot_product_attention(*_split(qkv, num_heads), implementation="cudnn")
    return out.reshape(*qkv.shape[:2], -1)


def _cudnn_obstacle(tokens: int, dim: int, num_heads: int, dtype: Any, device: Any) -> str | None:
    del tokens, dim, num_heads
    half = jnp.dtype(dtype) in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
    if half and accelerator.is_ampere(device):
        return None
    return "needs a GPU of compute capability 8.0 or more, and bfloat16 or float16"


# `auto` takes the first that can run.
ATTENTION = {
    "pallas": Implementation(fused_attention.attend, fused_attention.obstacle),
    "cudnn": Implementation(_cudnn, _cudnn_obstacle),
    "xla": Implementation(_xla, lambda *_: None),
}


def resolve(
    name: str, tokens: int, dim: int, num_heads: int, dtype: Any, device: Any = None
) -> str:
    """The implementation that `name` chooses for qkv [B, tokens, 3 dim] on a device.

    `device` is by default jax's first.

    Raises:
      ConfigError: no such implementation, or it cannot run there.
    """
    device = device or jax.devices()[0]
    wanted = (tokens, dim, num_heads, dtype, device)
    if name == "auto":
        return next(known for known, entry in ATTENTION.items() if not entry.obstacle(*wanted))
    if name not in ATTENTION:
        raise unknown("attention", name, ["auto", *ATTENTION])
    obstacle = ATTENTION[name].obstacle(*wanted)
    if obstacle:
        raise ConfigError(
            f"attention={name!r} {obstacle}; this is {accelerator.describe(device)}, dtype is "
            f"{jnp.dtype(dtype).name}; 'auto' takes the fastest that can run"
        )
    return name
