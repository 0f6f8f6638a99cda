"""The models under timm's names: `create_model`, `init_variables`, `apply`.

`variables` is `{'params': ..., 'batch_stats': ...}`, plain nested dicts of f32 arrays;
`batch_stats` is there for models with BatchNorm only.
"""

import fnmatch
import functools
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax.errors import unknown
from deit_jax.models.count import Size, count
from deit_jax.models.deit import VisionTransformer
from deit_jax.models.output import Output
from deit_jax.models.registry import ARCHITECTURES
from deit_jax.models.regnet import RegNet, fold_batch_norm

__all__ = [
    "Model",
    "Output",
    "RegNet",
    "Size",
    "VisionTransformer",
    "apply",
    "count",
    "create_model",
    "fold_batch_norm",
    "init_variables",
    "list_models",
]

Model = VisionTransformer | RegNet
DTYPES = ("float32", "bfloat16", "float16")


def list_models(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(ARCHITECTURES, pattern))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    dtype: str = "float32",
    drop_path_rate: float | None = None,
    **overrides: Any,
) -> Model:
    """The registered model `name`, with any attribute of its class overridden.

    `image_size` (one side or (height, width), pixels) and `drop_path_rate` default to the
    published ones. `overrides` are attributes of `VisionTransformer` (attention, remat,
    scan, depth, embed_dim, num_heads, patch_size, distilled, ...) or `RegNet` (widths,
    depths, group_sizes, strides, stem_stride, ...); `attention` is ignored by RegNet.
    Raises ConfigError for an unknown name and for attributes that do not fit together,
    TypeError for an unknown attribute.
    """
    if name not in ARCHITECTURES:
        raise unknown("model", name, ARCHITECTURES)
    kind, attributes = ARCHITECTURES[name]
    attributes = dict(attributes)
    if image_size is not None:
        attributes["image_size"] = image_size
    if drop_path_rate is not None:
        attributes["drop_path_rate"] = drop_path_rate
    if kind == "regnet":
        overrides.pop("attention", None)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    attributes |= {"num_classes": num_classes, "dtype": dtype} | overrides
    if isinstance(attributes["image_size"], int):
        attributes["image_size"] = (attributes["image_size"],) * 2
    attributes = {
        key: tuple(value) if isinstance(value, (list, tuple)) else value
        for key, value in attributes.items()
    }
    cls = VisionTransformer if kind == "deit" else RegNet
    fields = [field for field in cls.__dataclass_fields__ if field not in ("parent", "name")]
    extra = sorted(set(attributes) - set(fields))
    if extra:
        raise TypeError(f"model {name} takes no {', '.join(extra)}; known: {', '.join(fields)}")
    model = cls(**attributes)
    model.check()
    return model


@functools.partial(jax.jit, static_argnames="model")
def init_variables(model: Model, key: jax.Array) -> dict[str, Any]:
    """Freshly initialised `variables`, as published; can be jitted and given out_shardings."""
    # Jitted here so that a model is traced once, however often its shapes are asked for.
    image = jnp.zeros((1, *model.image_size, 3), jnp.float32)
    return model.init({"params": key}, image)


def apply(
    model: Model,
    variables: dict[str, Any],
    image: jax.Array,
    *,
    train: bool = False,
    keys: jax.Array | None = None,
    capture: bool = False,
) -> Any:
    """Runs `model` on normalised images f32 [B, h, w, 3].

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
