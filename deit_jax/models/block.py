"""The transformer block: attention and MLP, each with stochastic depth and LayerScale."""

from typing import Any

import flax.linen as nn
import jax

from deit_jax.models import attention, layers

# What a row's key is folded with, one number per dropout of a block.
_ATTENTION_DROP, _HIDDEN_DROP, _MLP_DROP = range(3)


class Attention(nn.Module):
    """Multi-head self-attention [B, T, D] -> ([B, T, D], weights f32 [B, H, T, T] or None).

    The fused `qkv` kernel is [D, 3 D]: queries, keys, values, each head by head.
    """

    num_heads: int
    dtype: Any
    implementation: str

    @nn.compact
    def __call__(self, x: jax.Array, capture: bool) -> tuple[jax.Array, jax.Array | None]:
        _, tokens, dim = x.shape
        product, bias = layers.Dense(3 * dim, self.dtype, name="qkv").parts(x)
        qkv = layers.add(product, bias)
        weights = attention.weights(qkv, self.num_heads) if capture else None
        name = attention.resolve(self.implementation, tokens, dim, self.num_heads, self.dtype)
        x = attention.ATTENTION[name].attend(product, bias, self.num_heads)
        return layers.Dense(dim, self.dtype, name="proj")(x), weights


class Mlp(nn.Module):
    """[B, T, D] -> [B, T, D] over `hidden` units with the exact (erf) GELU."""

    hidden: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        dim = x.shape[-1]
        x = layers.gelu(layers.Dense(self.hidden, self.dtype, name="fc1")(x))
        x = layers.dropout(x, layers.fold_keys(keys, _HIDDEN_DROP), self.dropout_rate)
        return layers.Dense(dim, self.dtype, name="fc2")(x)


class Block(nn.Module):
    """One transformer block.

    In training `draw` is uniform, f32 [B, 2], for stochastic depth of the two branches at
    `drop_rate`, and `keys` [B] are this block's for dropout; both None in evaluation.
    """

    num_heads: int
    mlp_ratio: float
    layer_scale_init: float | None
    dropout_rate: float
    epsilon: float
    dtype: Any
    attention: str

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        draw: jax.Array | None,
        keys: jax.Array | None,
        drop_rate: Any,
        capture: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        dim = x.shape[-1]
        y = layers.LayerNorm(self.dtype, self.epsilon, name="norm1")(x)
        y, weights = Attention(self.num_heads, self.dtype, self.attention, name="attn")(y, capture)
        y = layers.dropout(y, layers.fold_keys(keys, _ATTENTION_DROP), self.dropout_rate)
        y = self._layer_scale(y, "gamma_1")
        x = x + layers.drop_path(y, None if draw is None else draw[:, 0], drop_rate)
        y = layers.LayerNorm(self.dtype, self.epsilon, name="norm2")(x)
        y = Mlp(int(dim * self.mlp_ratio), self.dropout_rate, self.dtype, name="mlp")(y, keys)
        y = layers.dropout(y, layers.fold_keys(keys, _MLP_DROP), self.dropout_rate)
        y = self._layer_scale(y, "gamma_2")
        x = x + layers.drop_path(y, None if draw is None else draw[:, 1], drop_rate)
        return x, weights

    def _layer_scale(self, x: jax.Array, name: str) -> jax.Array:
        if self.layer_scale_init is None:
            return x
        gamma = self.param(name, nn.initializers.constant(self.layer_scale_init), (x.shape[-1],))
        return layers.scale(x, gamma)
