"""Implementations of attention, from the output of the fused qkv product.

A new one is a function `[B, T, 3 D], num_heads -> [B, T, D]`, one that says where it cannot
run, and a line in `ATTENTION`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deit_jax.errors import ConfigError, unknown
from deit_jax.models import accelerator, fused_attention


class Implementation(NamedTuple):
    """One way to compute attention.

    Attributes:
      attend: qkv [B, T, 3 D] (queries, keys, values, each head by head) and the number of
        heads -> [B, T, D], in the type of qkv.
      obstacle: tokens T, width D, number of heads, compute type and device (see `accelerator`)
        -> why this implementation cannot run there, or None.
    """

    attend: Callable[[jax.Array, int], jax.Array]
    obstacle: Callable[[int, int, int, Any, Any], str | None]


def _split(qkv: jax.Array, num_heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B, T, 3 D] -> queries, keys, values [B, T, H, d]."""
    rows, tokens, width = qkv.shape
    qkv = qkv.reshape(rows, tokens, 3, num_heads, width // (3 * num_heads))
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def weights(qkv: jax.Array, num_heads: int) -> jax.Array:
    """softmax(query key' / sqrt(d)): qkv [B, T, 3 D] -> f32 [B, H, T, T]."""
    query, key, _ = _split(qkv, num_heads)
    return jax.nn.softmax(_scores(query, key) * query.shape[-1] ** -0.5, axis=-1)


def _xla(qkv: jax.Array, num_heads: int) -> jax.Array:
    value = _split(qkv, num_heads)[2]
    shares = weights(qkv, num_heads).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", shares, value).reshape(*qkv.shape[:2], -1)


def _cudnn(qkv: jax.Array, num_heads: int) -> jax.Array:
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


@jax.custom_vjp
def _scores(query: jax.Array, key: jax.Array) -> jax.Array:
    """query key', f32 [B, H, T, T], of operands in the compute type."""
    return jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)


def _scores_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array):
    # As fused kernels do: left in f32, the gradient would make both products f32 ones.
    query, key = saved
    gradient = gradient.astype(query.dtype)
    return (
        jnp.einsum("bhts,bshd->bthd", gradient, key),
        jnp.einsum("bhts,bthd->bshd", gradient, query),
    )


_scores.defvjp(lambda query, key: (_scores(query, key), (query, key)), _scores_backward)
