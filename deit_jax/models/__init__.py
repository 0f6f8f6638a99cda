"""The models under timm's names: `create_model`, `init_variables`, `apply`.

`variables` is `{'params': ..., 'batch_stats': ...}`, plain nested dicts of f32 arrays;
only models with BatchNorm have `batch_stats`.

A new family is a subclass of `Model` (model.py) with its attributes, `__call__` and `check`,
and a row per registered name in `registry.ARCHITECTURES`. To exchange its weights with other
libraries, add its names to `pretrained/formats/`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax.models.deit import VisionTransformer
from deit_jax.models.model import Model, Output
from deit_jax.models.registry import create_model, list_models
from deit_jax.models.regnet import RegNet

__all__ = [
    "Model",
    "Output",
    "RegNet",
    "VisionTransformer",
    "abstract_variables",
    "apply",
    "create_model",
    "init_variables",
    "list_models",
]


@functools.partial(jax.jit, static_argnames="model")
def init_variables(model: Model, key: jax.Array) -> dict[str, Any]:
    """Freshly initialized `variables`, as published; can be jitted and given out_shardings."""
    # Jitted here so that a model is traced once, however often its shapes are needed.
    image = jnp.zeros((1, *model.image_size, 3), jnp.float32)
    return dict(model.init({"params": key}, image))


def abstract_variables(model: Model) -> dict[str, Any]:
    """Shapes and dtypes of the `variables` of a model; nothing is computed."""
    return jax.eval_shape(lambda key: init_variables(model, key), jax.random.key(0))


def apply(
    model: Model,
    variables: dict[str, Any],
    image: jax.Array,
    *,
    train: bool = False,
    keys: jax.Array | None = None,
    capture: bool = False,
) -> Any:
    """Runs `model` on normalized images f32 [B, h, w, 3].

    Evaluation returns `Output(logits [B, K] f32, dist_logits [B, K] f32 or None)`.
    Training returns `(Output, new_batch_stats)`, `{}` without BatchNorm; BatchNorm then uses
    the statistics of the whole batch. `keys` [B], one per row, are needed for training with
    stochastic depth or dropout: all draws of row i come from `keys[i]` alone.

    `capture=True` appends a dict of intermediates to the result. Transformers: `embedded`
    (block input), `blocks_i`, `norm` [B, T, D] and `attention_i` f32 [B, H, T, T]; RegNets:
    `stem`, `s1_b1`, ... [B, h, w, C].
    Raises ValueError when keys are missing or do not match the rows.
    """
    if train and model.stochastic and keys is None:
        raise ValueError("training with stochastic depth or dropout needs keys, one per row")
    if keys is not None and keys.shape != (image.shape[0],):
        raise ValueError(f"keys have shape {keys.shape}, expected one per row: ({image.shape[0]},)")
    # numpy's own promotion turns bf16 into f32.
    variables = jax.tree.map(jnp.asarray, variables)
    arguments = {"train": train, "keys": keys, "capture": capture}
    if not train:
        output, features = model.apply(variables, image, **arguments)
        return (output, features) if capture else output
    (output, features), new = model.apply(variables, image, **arguments, mutable=["batch_stats"])
    stats = new.get("batch_stats", {})
    return (output, stats, features) if capture else (output, stats)
