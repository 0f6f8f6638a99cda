"""DeiT (arXiv 2012.12877) and DeiT-III (arXiv 2204.07118) vision transformers.

Pre-norm blocks x += drop_path(attention(LN(x))), x += drop_path(mlp(LN(x))) on the
sequence [class, distillation, patches]. DeiT adds the position embedding to the whole
sequence; DeiT-III to the patches alone, before the class token is put in front, and
multiplies each branch by a learned LayerScale.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deit_jax.errors import ConfigError, unknown
from deit_jax.models import initializers, layers
from deit_jax.models.output import Output

_normal = initializers.normal(0.02)

REMAT = {
    "none": None,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DROP_PATH_SCHEDULES = ("linear", "constant")

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
        rows, tokens, dim = x.shape
        qkv = layers.Dense(3 * dim, self.dtype, name="qkv")(x)
        qkv = qkv.reshape(rows, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = layers.attention_weights(query, key) if capture else None
        implementation = layers.resolve_attention(self.implementation, self.dtype)
        x = layers.attend(query, key, value, implementation=implementation)
        return layers.Dense(dim, self.dtype, name="proj")(x.reshape(rows, tokens, dim)), weights


class Mlp(nn.Module):
    """[B, T, D] -> [B, T, D] over `hidden` units with the exact (erf) GELU."""

    hidden: int
    dropout_rate: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        dim = x.shape[-1]
        x = nn.gelu(layers.Dense(self.hidden, self.dtype, name="fc1")(x), approximate=False)
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
        y = layers.layer_norm(self.dtype, self.epsilon, "norm1")(x)
        y, weights = Attention(self.num_heads, self.dtype, self.attention, name="attn")(y, capture)
        y = layers.dropout(y, layers.fold_keys(keys, _ATTENTION_DROP), self.dropout_rate)
        y = self._layer_scale(y, "gamma_1")
        x = x + layers.drop_path(y, None if draw is None else draw[:, 0], drop_rate)
        y = layers.layer_norm(self.dtype, self.epsilon, "norm2")(x)
        y = Mlp(int(dim * self.mlp_ratio), self.dropout_rate, self.dtype, name="mlp")(y, keys)
        y = layers.dropout(y, layers.fold_keys(keys, _MLP_DROP), self.dropout_rate)
        y = self._layer_scale(y, "gamma_2")
        x = x + layers.drop_path(y, None if draw is None else draw[:, 1], drop_rate)
        return x, weights

    def _layer_scale(self, x: jax.Array, name: str) -> jax.Array:
        if self.layer_scale_init is None:
            return x
        gamma = self.param(name, nn.initializers.constant(self.layer_scale_init), (x.shape[-1],))
        return x * gamma.astype(x.dtype).reshape(1, 1, -1)


class VisionTransformer(nn.Module):
    """Image f32 [B, h, w, 3], normalised -> `Output(logits [B, K], dist_logits [B, K] | None)`.

    Attributes:
      num_classes: K.
      image_size: (height, width), multiples of `patch_size`.
      distilled: with a distillation token behind the class token, and its head.
      dist_head: False leaves out that head (Hugging Face's DeiTForImageClassification).
      class_position: the position embedding has rows for these tokens too and is added
        to the whole sequence (DeiT); False: added to the patches alone (DeiT-III).
      layer_scale_init: start of LayerScale's gammas, None for none.
      drop_path_rate: of the last block (`linear`: block i has rate * i / (depth - 1)) or of
        every block (`constant`, DeiT-III).
      dropout_rate: after the position embedding, the attention's and both MLP projections.
      dtype: compute type; parameters, statistics and logits are f32.
      attention: auto | xla | cudnn, see `layers.resolve_attention`.
      scan: run the blocks in `lax.scan` (compiles once instead of `depth` times, runs slower).
      remat: none | full | dots: what the backward pass computes again.
    """

    num_classes: int
    image_size: tuple[int, int]
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    distilled: bool = False
    dist_head: bool = True
    class_position: bool = True
    layer_scale_init: float | None = None
    drop_path_rate: float = 0.0
    drop_path_schedule: str = "linear"
    dropout_rate: float = 0.0
    epsilon: float = 1e-6
    dtype: str = "float32"
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"

    def check(self) -> None:
        """Raises ConfigError when the attributes do not fit together."""
        layers.resolve_attention(self.attention, self.dtype)
        layers.check_values(self, sizes=("patch_size", "embed_dim", "depth", "num_heads"))
        if self.remat not in REMAT:
            raise unknown("remat", self.remat, REMAT)
        if self.drop_path_schedule not in DROP_PATH_SCHEDULES:
            raise unknown("drop_path_schedule", self.drop_path_schedule, DROP_PATH_SCHEDULES)
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if any(side <= 0 or side % self.patch_size for side in self.image_size):
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def stochastic(self) -> bool:
        """Training needs `keys`."""
        return self.drop_path_rate > 0 or self.dropout_rate > 0

    def drop_rates(self) -> list[float]:
        """Stochastic depth of each block."""
        if self.drop_path_schedule == "constant":
            return [self.drop_path_rate] * self.depth
        return [self.drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
        capture: bool = False,
    ) -> tuple[Output, dict[str, jax.Array]]:
        """See `deit_jax.models.apply`; in evaluation `keys` are ignored."""
        if image.shape[1:3] != tuple(self.image_size):
            raise ValueError(
                f"image is {image.shape[1]}x{image.shape[2]}, the model takes "
                f"{self.image_size[0]}x{self.image_size[1]}: create it with image_size="
            )
        keys = keys if train else None
        x = self._embed(image, keys)
        features = {"embedded": x} if capture else {}
        x = self._blocks(x, keys, features if capture else None)
        x = layers.layer_norm(self.dtype, self.epsilon, "norm")(x)
        if capture:
            features["norm"] = x
        # Heads in f32: bf16 logits would carry only three digits into the loss.
        logits = layers.Dense(self.num_classes, jnp.float32, name="head")(x[:, 0])
        if not (self.distilled and self.dist_head):
            return Output(logits, None), features
        dist_head = layers.Dense(self.num_classes, jnp.float32, name="head_dist")
        return Output(logits, dist_head(x[:, 1])), features

    def _embed(self, image: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Patches with tokens and positions, [B, T, D]."""
        dim, rows = self.embed_dim, image.shape[0]
        x = layers.PatchEmbed(self.patch_size, dim, self.dtype, name="patch_embed")(image)
        names = ("cls_token", "dist_token") if self.distilled else ("cls_token",)
        tokens = [self.param(name, _normal, (1, 1, dim)) for name in names]
        tokens = [jnp.broadcast_to(token.astype(x.dtype), (rows, 1, dim)) for token in tokens]
        length = x.shape[1] + (len(tokens) if self.class_position else 0)
        position = self.param("pos_embed", _normal, (1, length, dim)).astype(x.dtype)
        if self.class_position:
            x = jnp.concatenate([*tokens, x], axis=1) + position
        else:
            x = jnp.concatenate([*tokens, x + position], axis=1)
        return layers.dropout(x, self._dropout_keys(keys, self.depth), self.dropout_rate)

    def _dropout_keys(self, keys: jax.Array | None, block: Any) -> jax.Array | None:
        """Keys of one block; `depth` stands for the embedding. Stochastic depth folds with 0."""
        return layers.fold_keys(keys, block + 1) if self.dropout_rate else None

    def _drop_draws(self, keys: jax.Array | None) -> jax.Array | None:
        return layers.drop_draws(keys, self.depth, 2) if self.drop_path_rate else None

    def _block_kwargs(self) -> dict[str, Any]:
        return {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "layer_scale_init": self.layer_scale_init,
            "dropout_rate": self.dropout_rate,
            "epsilon": self.epsilon,
            "dtype": self.dtype,
            "attention": self.attention,
        }

    def _blocks(
        self, x: jax.Array, keys: jax.Array | None, features: dict[str, jax.Array] | None
    ) -> jax.Array:
        """All blocks; fills `features` with `blocks_i` [B, T, D] and `attention_i` [B, H, T, T]."""
        capture = features is not None
        if self.scan and not capture and not self.is_initializing():
            return self._scanned_blocks(x, keys)
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], static_argnums=(4, 5))
        draws = self._drop_draws(keys)
        for i, rate in enumerate(self.drop_rates()):
            draw = None if draws is None else draws[:, i]
            x, weights = block(name=f"blocks_{i}", **self._block_kwargs())(
                x, draw, self._dropout_keys(keys, i), rate, capture
            )
            if capture:
                features[f"blocks_{i}"], features[f"attention_{i}"] = x, weights
        return x

    def _scanned_blocks(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """The same numbers from the same parameter tree: the blocks' leaves are stacked on entry."""
        params = self.variables["params"]
        blocks = [params[f"blocks_{i}"] for i in range(self.depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        block = Block(parent=None, **self._block_kwargs())
        draws = self._drop_draws(keys)

        def body(x, layer):
            index, rate, draw, block_params = layer
            block_keys = self._dropout_keys(keys, index)
            return block.apply({"params": block_params}, x, draw, block_keys, rate)[0], None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
        rates = jnp.asarray(self.drop_rates(), jnp.float32)
        draws = None if draws is None else draws.swapaxes(0, 1)
        return jax.lax.scan(body, x, (jnp.arange(self.depth), rates, draws, stacked))[0]
