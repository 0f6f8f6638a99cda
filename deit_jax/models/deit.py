"""DeiT (arXiv 2012.12877) and DeiT-III (arXiv 2204.07118) vision transformers.

Pre-norm blocks x += drop_path(attention(LN(x))), x += drop_path(mlp(LN(x))) on the
sequence [class, distillation, patches]. DeiT adds the position embedding to the whole
sequence; DeiT-III to the patches alone, before the class token is put in front, and
multiplies each branch by a learned LayerScale.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.errors import ConfigError, check_at_most, unknown
from deit_jax.models import attention, initializers, layers
from deit_jax.models.block import Block
from deit_jax.models.count import Size, trace
from deit_jax.models.model import Model, Output
from deit_jax.models.position import resize_position

_normal = initializers.normal(0.02)

REMAT = {
    "none": None,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DROP_PATH_SCHEDULES = ("linear", "constant")

# Values per token and unit of width that one block saves for the backward pass, in f32 and in half
# precision. In f32 residuals of `jax.vjp`; in half precision the compilers' plans have fewer
# (`benchmarks/results/programs/`): they make LayerNorm's f32 values again from its input, and on
# TPUs GELU's output too.
_SAVED_PER_BLOCK = {"none": (16.0, 17.0), "dots": (9.0, 9.0), "full": (1.0, 1.0)}
_SAVED_ON_TPU = 12.0


class VisionTransformer(Model, kw_only=True):
    """Vision transformer of DeiT and DeiT-III.

    Normalized image f32 [B, h, w, 3] -> `Output(logits [B, K], dist_logits [B, K] | None)`.

    Attributes:
      patch_size: side in pixels; `image_size` is a multiple of it.
      distilled: with a distillation token behind the class token, and its head.
      dist_head: False leaves out that head (Hugging Face's DeiTForImageClassification).
      class_position: the position embedding has rows for these tokens too and is added
        to the whole sequence (DeiT); False: added to the patches alone (DeiT-III).
      layer_scale_init: start of LayerScale's gammas, None for none.
      drop_path_rate: of the last block (`linear`: block i has rate * i / (depth - 1)) or of
        every block (`constant`, DeiT-III).
      dropout_rate: after the position embedding, the attention's and both MLP projections.
      attention: auto | pallas (TPU) | cudnn (GPU) | xla, see `attention.ATTENTION`.
      scan: run the blocks in `lax.scan` (compiles once instead of `depth` times, runs slower).
      remat: none | full | dots: recompute nothing, whole blocks, or all but matrix products in the
        backward pass.
    """

    head_params = ("head", "head_dist")
    undetermined = ("num_heads",)

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
    attention: str = "auto"
    scan: bool = False
    remat: str = "none"

    def check(self) -> None:
        """Raises ConfigError when the attributes do not fit together."""
        layers.check_values(self, sizes=("patch_size", "embed_dim", "depth", "num_heads"))
        if not 0 < self.epsilon < 1 or not self.mlp_ratio > 0:
            raise ConfigError(
                f"epsilon must be above 0 and below 1, not {self.epsilon}; mlp_ratio above 0, "
                f"not {self.mlp_ratio}"
            )
        check_at_most(1000, mlp_ratio=self.mlp_ratio)
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise ConfigError(f"mlp_ratio {self.mlp_ratio} leaves no hidden units")
        if self.layer_scale_init is not None and not 0 <= self.layer_scale_init <= 100:
            raise ConfigError(
                f"layer_scale_init must be 0 to 100, or None, not {self.layer_scale_init}"
            )
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

    def check_device(self, device: Any = None) -> None:
        """See `Model.check_device`; an attention that is asked for may not run there."""
        self.attention_on(device)

    def attention_on(self, device: Any = None) -> str:
        """The implementation of attention that is chosen on a device, by default jax's first."""
        tokens = math.prod(self.grid) + self.prefix_tokens
        shape = tokens, self.embed_dim, self.num_heads
        return attention.resolve(self.attention, *shape, self.dtype, device)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def prefix_tokens(self) -> int:
        """Class token, and distillation token."""
        return 1 + self.distilled

    @property
    def heads(self) -> tuple[str, ...]:
        """See `Model`."""
        return ("class", "dist") if self.distilled and self.dist_head else ("class",)

    @property
    def num_layers(self) -> int:
        """See `Model`; one above the last block."""
        return self.depth + 1

    def layer_of(self, path: str) -> int | None:
        """See `Model.layer_of`; the final norm counts with the last block."""
        first = path.split("/")[0]
        if first.startswith("blocks_"):
            return 1 + int(first.removeprefix("blocks_"))
        numbers = dict.fromkeys(("cls_token", "dist_token", "pos_embed", "patch_embed"), 0)
        numbers |= {"norm": self.depth} | dict.fromkeys(self.head_params, self.num_layers)
        return numbers.get(first)

    def count(self) -> Size:
        """See `Model.count`."""
        # XLA's attention consists of plain products, which the fused kernels hide. Blocks are
        # all alike: two short models give the size at any depth.
        model = self.clone(attention="xla", scan=False, remat="none")
        one, two = (trace(model.clone(depth=depth)).size for depth in (1, 2))
        return Size(*(a + (self.depth - 1) * (b - a) for a, b in zip(one, two, strict=True)))

    def saved_bytes(self, device: Any = None) -> float:
        """See `Model.saved_bytes`."""
        return self.depth * self._block_bytes(self.remat, device)

    def recomputed_bytes(self, device: Any = None) -> float:
        """See `Model.recomputed_bytes`: what one block does not save."""
        return self._block_bytes("none", device) - self._block_bytes(self.remat, device)

    def _block_bytes(self, remat: str, device: Any) -> float:
        itemsize = jnp.dtype(self.dtype).itemsize
        tokens = math.prod(self.grid) + self.prefix_tokens
        attention_on = self.attention_on(device)
        values = _SAVED_PER_BLOCK[remat][itemsize < 4]
        if remat == "none" and attention_on == "pallas":
            values = _SAVED_ON_TPU
        saved = values * tokens * self.embed_dim * itemsize
        if remat == "none" and attention_on == "xla":
            # The weights; the GPU compiler's plans in half precision have the scores in f32 too.
            scores = 4 if itemsize < 4 else 0
            saved += self.num_heads * tokens**2 * (itemsize + scores)
        return saved

    @property
    def recomputed_passes(self) -> int:
        """See `Model`; remat='full' saves only the inputs of the blocks."""
        return int(self.remat == "full")

    @property
    def optional_params(self) -> tuple[str, ...]:
        """See `Model`."""
        return ("dist_token", "head_dist") if self.distilled else ()

    def fit_param(
        self, path: str, value: np.ndarray, old: Model, fresh: np.ndarray | None
    ) -> tuple[np.ndarray, str]:
        """See `Model.fit_param`; patches of the position embedding are resized to this grid.

        Rows of tokens are copied; that of a distillation token that `old` lacks is `fresh`.
        """
        if path != "pos_embed" or not isinstance(old, VisionTransformer):
            return value, ""
        if old.class_position != self.class_position:
            return value, ""
        tokens = old.prefix_tokens if old.class_position else 0
        rows, patches = np.split(np.asarray(value), [tokens], axis=1)
        rows = rows[:, : self.prefix_tokens]
        if self.class_position and self.prefix_tokens > old.prefix_tokens:
            if fresh is None:
                raise ConfigError("a distilled model needs a template to start from a plain one")
            rows = np.concatenate([rows, np.asarray(fresh)[:, 1:2]], axis=1)
        patches = resize_position(patches, old.grid, self.grid)
        note = f"position embedding {old.grid} -> {self.grid}" if old.grid != self.grid else ""
        return np.concatenate([rows, patches], axis=1), note

    def embeddings(self, features: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `Model.embeddings`; after the last LayerNorm."""
        tokens = features["norm"].astype(jnp.float32)
        names = ("class_token", "distillation_token")[: self.prefix_tokens]
        found = {name: tokens[:, i] for i, name in enumerate(names)}
        return found | {"patch_mean": tokens[:, self.prefix_tokens :].mean(1)}

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
        """See `Model`."""
        if image.shape[1:3] != tuple(self.image_size):
            raise ValueError(
                f"image is {image.shape[1]}x{image.shape[2]}, the model takes "
                f"{self.image_size[0]}x{self.image_size[1]}: create it with image_size="
            )
        keys = keys if train else None
        x = self._embed(image, keys)
        features = {"embedded": x} if capture else {}
        x = self._blocks(x, keys, features if capture else None)
        if not capture:
            # The heads read these rows alone.
            x = x[:, : self.prefix_tokens]
        x = layers.LayerNorm(self.dtype, self.epsilon, name="norm")(x)
        if capture:
            features["norm"] = x
        # Heads in f32: bf16 logits would carry only three digits into the loss.
        logits = layers.Dense(self.num_classes, jnp.float32, name="head")(x[:, 0])
        if "dist" not in self.heads:
            return Output(logits, None), features
        dist_head = layers.Dense(self.num_classes, jnp.float32, name="head_dist")
        return Output(logits, dist_head(x[:, 1])), features

    def _embed(self, image: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Patches with tokens and positions, [B, T, D]."""
        dim, rows = self.embed_dim, image.shape[0]
        x = layers.PatchEmbed(self.patch_size, dim, self.dtype, name="patch_embed")(image)
        names = ("cls_token", "dist_token") if self.distilled else ("cls_token",)
        tokens = [self.param(name, _normal, (1, 1, dim)) for name in names]
        tokens = [jnp.broadcast_to(token, (rows, 1, dim)).astype(x.dtype) for token in tokens]
        length = x.shape[1] + (len(tokens) if self.class_position else 0)
        position = self.param("pos_embed", _normal, (1, length, dim))
        if self.class_position:
            x = layers.add(jnp.concatenate([*tokens, x], axis=1), position)
        else:
            x = jnp.concatenate([*tokens, layers.add(x, position)], axis=1)
        return layers.dropout(x, self._dropout_keys(keys, self.depth), self.dropout_rate)

    def _dropout_keys(self, keys: jax.Array | None, block: Any) -> jax.Array | None:
        """Keys of one block; `depth` stands for the embedding. Stochastic depth folds with 0."""
        return layers.fold_keys(keys, block + 1) if self.dropout_rate else None

    def _block_kwargs(self) -> dict[str, Any]:
        shared = ("num_heads", "mlp_ratio", "layer_scale_init", "dropout_rate", "epsilon", "dtype")
        return {name: getattr(self, name) for name in (*shared, "attention")}

    def _blocks(
        self, x: jax.Array, keys: jax.Array | None, features: dict[str, Any] | None
    ) -> jax.Array:
        """All blocks; fills `features` with `blocks_i` [B, T, D] and `attention_i` [B, H, T, T]."""
        capture = features is not None
        if self.scan and not capture and not self.is_initializing():
            return self._scanned_blocks(x, keys)
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=REMAT[self.remat], static_argnums=(4, 5))
        draws = layers.drop_draws(keys, self.depth, 2) if self.drop_path_rate else None
        for i, rate in enumerate(self.drop_rates()):
            draw = None if draws is None else draws[:, i]
            x, weights = block(name=f"blocks_{i}", **self._block_kwargs())(
                x, draw, self._dropout_keys(keys, i), rate, capture
            )
            if features is not None:
                features[f"blocks_{i}"], features[f"attention_{i}"] = x, weights
        return x

    def _scanned_blocks(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """The same numbers from the same parameters: the leaves of the blocks are stacked."""
        params = self.variables["params"]
        blocks = [params[f"blocks_{i}"] for i in range(self.depth)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
        block = Block(parent=None, **self._block_kwargs())
        draws = layers.drop_draws(keys, self.depth, 2) if self.drop_path_rate else None

        def body(x, layer):
            index, rate, draw, block_params = layer
            block_keys = self._dropout_keys(keys, index)
            return block.apply({"params": block_params}, x, draw, block_keys, rate)[0], None

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
        rates = jnp.asarray(self.drop_rates(), jnp.float32)
        draws = None if draws is None else draws.swapaxes(0, 1)
        return jax.lax.scan(body, x, (jnp.arange(self.depth), rates, draws, stacked))[0]
