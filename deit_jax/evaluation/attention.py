"""Which patches the class and the distillation token look at, block by block, and rollout."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import models, pretrained, storage
from deit_jax.errors import ConfigError
from deit_jax.evaluation.classify import read_photo
from deit_jax.evaluation.evaluate import Evaluation
from deit_jax.evaluation.evaluator import square_side
from deit_jax.evaluation.heads import head_outputs
from deit_jax.models import VisionTransformer

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Maps:
    """Attention to the patches of one photo.

    Attributes:
      photo: uint8 [h, w, 3], what the model saw.
      heads: f32 [L, H, S, y, x], for each of L blocks and H heads the attention of S tokens (the
        class token, then the distillation token, if there is one) to the patches.
      rollout: f32 [L, S, y, x], the same of the rollout of all blocks up to this one.
      probabilities: f32 [K] for each name of `heads.HEADS`.

    What a row of `heads` or `rollout` lacks to 1 goes to the tokens.
    """

    photo: np.ndarray
    heads: np.ndarray
    rollout: np.ndarray
    probabilities: dict[str, np.ndarray]

    @property
    def mean(self) -> np.ndarray:
        """f32 [L, S, y, x], over the heads."""
        return self.heads.mean(axis=1)


@functools.partial(jax.jit, static_argnames="model")
def attention_weights(
    model: VisionTransformer, variables: PyTree, image: jax.Array
) -> tuple[models.Output, jax.Array]:
    """The outputs for `image`, and the attention of every block, in evaluation.

    The weights are those with which the blocks weigh their values: where the model has a fused
    attention, which does not keep them, the plain one stands in for it here.

    Args:
      model: any vision transformer.
      variables: its variables.
      image: normalized, f32 [B, h, w, 3].

    Returns:
      `Output`, and f32 [L, B, H, T, T] for L blocks, H heads and T tokens (class, distillation,
      patches row by row): softmax(q k' / sqrt(d)), the last axis of sum 1.

    Raises:
      ConfigError: the model has no attention.
    """
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"a {type(model).__name__} has no attention; take a vision transformer")
    plain = model.clone(attention="xla", remat="none")
    output, features = models.apply(plain, variables, image, capture=True)
    return output, jnp.stack([features[f"attention_{i}"] for i in range(model.depth)])


def rollout(weights: np.ndarray) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema, 2020, arXiv 2005.00928).

    Of each block the mean over the heads, with the residual connection as the paper has it: half
    the attention and half the identity; multiplied from the first block on. LayerScale and the
    MLPs are left out, as there.

    Args:
      weights: [L, ..., H, T, T], see `attention_weights`.

    Returns:
      float64 [L, ..., T, T]: entry l is the product of blocks 0..l, its rows of sum 1.
    """
    mean = np.asarray(weights, np.float64).mean(axis=-3)
    mixed = 0.5 * mean + 0.5 * np.eye(mean.shape[-1])
    # Sums of f32 weights are 1 but for their rounding, which would add up.
    mixed /= mixed.sum(axis=-1, keepdims=True)
    found = [mixed[0]]
    for block in mixed[1:]:
        found.append(block @ found[-1])
    return np.stack(found)


def make_attention(
    loaded: pretrained.LoadedCheckpoint,
    *,
    image_size: int | None = None,
    crop_ratio: float | None = None,
) -> Callable[[str | os.PathLike | storage.Path], Maps]:
    """Builds `maps(path) -> Maps` of a photo, prepared as in evaluation.

    Args:
      loaded: a vision transformer.
      image_size: side in pixels, by default the checkpoint's.
      crop_ratio: by default the checkpoint's.

    Raises:
      ConfigError: the model has no attention, or does not take images of this size; from `maps`,
        a photo that cannot be read or decoded.
    """
    sizes = {"image_size": image_size} if image_size else {}
    model = loaded.create_model(**sizes)
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"{loaded.model} has no attention; take a vision transformer")
    evaluation = Evaluation(square_side(model), crop_ratio=crop_ratio or loaded.image["crop_ratio"])
    transform = evaluation.make_transform(loaded.mean, loaded.std)
    variables = jax.device_put(pretrained.adapt(loaded, model=model).variables)

    @jax.jit
    def forward(variables: PyTree, batch: PyTree) -> tuple:
        image = transform(batch)
        output, weights = attention_weights(model, variables, image)
        return image[0], head_outputs(output), weights[:, 0]

    def maps(path: str | os.PathLike | storage.Path) -> Maps:
        image, scores, weights = jax.device_get(forward(variables, read_photo(path, evaluation)))
        levels = image * np.array(loaded.std) + np.array(loaded.mean)
        to_patches = functools.partial(_to_patches, model)
        return Maps(
            photo=np.round(255 * np.clip(levels, 0, 1)).astype(np.uint8),
            heads=to_patches(weights),
            rollout=to_patches(rollout(weights)).astype(np.float32),
            probabilities={head: np.exp(score[0]) for head, score in scores.items()},
        )

    return maps


def _to_patches(model: VisionTransformer, weights: np.ndarray) -> np.ndarray:
    """[..., T, T] -> [..., S, y, x]: rows of the tokens, columns of the patches."""
    tokens = model.prefix_tokens
    rows = weights[..., :tokens, tokens:]
    return rows.reshape(*rows.shape[:-1], *model.grid)
