"""A model folder that timm or transformers loads: weights, settings, a card."""

import json
import os
from collections.abc import Mapping
from typing import Any

from deit_jax import builders, storage
from deit_jax.errors import ConfigError
from deit_jax.evaluation import card
from deit_jax.models import Model, RegNet
from deit_jax.models.registry import ARCHITECTURES, create_model
from deit_jax.pretrained import LoadedCheckpoint
from deit_jax.pretrained.convert import save_hf, save_timm
from deit_jax.pretrained.formats import huggingface

# Our attributes under the names of timm's arguments.
_TIMM_ARGUMENTS = {
    "image_size": "img_size",
    "patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "layer_scale_init": "init_values",
}
# That change what a RegNet computes; timm has them for each name alone.
_REGNET = (
    *("widths", "depths", "group_sizes", "strides", "stem_width", "stem_stride"),
    *("se_ratio", "activation", "norm_group"),
)


def publish_timm(loaded: LoadedCheckpoint, folder: storage.Path) -> None:
    """For `timm.create_model("local-dir:FOLDER", pretrained=True)`, or from the hub."""
    config = timm_config(loaded)
    folder.mkdir()
    save_timm(loaded, folder / "model.safetensors")
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", huggingface.processor_config(loaded.image))


def publish_hf(loaded: LoadedCheckpoint, folder: storage.Path) -> None:
    """For `from_pretrained(FOLDER)` of transformers."""
    save_hf(loaded, folder)


# In the order of preference.
TARGETS = {"timm": publish_timm, "hf": publish_hf}


def publish(
    loaded: LoadedCheckpoint,
    folder: str | os.PathLike | storage.Path,
    *,
    to: str | None = None,
    weights: str = "raw",
) -> str:
    """Writes the folder: weights, config.json, preprocessor_config.json and README.md.

    Args:
      to: a name in `TARGETS`; None: the first that can express the model.
      weights: `raw` or `EMA`, which of a run's `loaded` are.

    Returns the target.

    Raises:
      ConfigError: the folder exists, or the library has no such model.
    """
    folder = storage.path(folder)
    if folder.exists():
        raise ConfigError(f"{folder} exists; remove it or choose another folder")
    target = _target(loaded) if to is None else to
    write = builders.choose(TARGETS, target, "format")
    with storage.local_output(folder) as local:
        write(loaded, local)
        storage.write(local / "README.md", card.write_card(loaded, folder.name, target, weights))
    return target


def _target(loaded: LoadedCheckpoint) -> str:
    reasons = []
    for name, check in (("timm", timm_config), ("hf", _check_hf)):
        try:
            check(loaded)
            return name
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError(f"{'; '.join(reasons)}; deit-jax export writes a file of it nevertheless")


def _check_hf(loaded: LoadedCheckpoint) -> None:
    huggingface.model_config(loaded.create_model(), loaded.class_names)


def timm_config(loaded: LoadedCheckpoint) -> dict[str, Any]:
    """`config.json` for timm. Raises ConfigError for a model that timm does not have."""
    model = loaded.create_model()
    architecture, arguments = _timm_model(loaded.model, model)
    height, width = model.image_size
    image = loaded.image
    regnet = isinstance(model, RegNet)
    heads = tuple(name for name in model.head_params if name in loaded.variables["params"])
    pretrained = {
        "num_classes": model.num_classes,
        "input_size": [3, height, width],
        "fixed_input_size": not regnet,
        "interpolation": "bicubic",
        "crop_pct": image["crop_ratio"],
        "crop_mode": "center",
        "mean": list(image["mean"]),
        "std": list(image["std"]),
        "first_conv": "stem.conv" if regnet else "patch_embed.proj",
        "classifier": "head.fc" if regnet else list(heads) if len(heads) > 1 else "head",
    }
    names = {"label_names": list(loaded.class_names)} if loaded.class_names else {}
    config = {"architecture": architecture, "num_classes": model.num_classes, **names}
    return config | {"model_args": arguments, "pretrained_cfg": pretrained}


def _timm_model(name: str, model: Model) -> tuple[str, dict[str, Any]]:
    """(timm's name, arguments of its `create_model`)."""
    if name not in ARCHITECTURES or type(model) is not ARCHITECTURES[name][0]:
        raise ConfigError(f"timm has no model {name!r}")
    if isinstance(model, RegNet):
        published = create_model(name, num_classes=model.num_classes)
        own = [key for key in _REGNET if _differs(model, published, key)]
        if own:
            raise ConfigError(f"timm's {name} has another {', '.join(own)}")
        return name, {}
    if model.epsilon != 1e-6:
        raise ConfigError(f"timm's models have an epsilon of 1e-06, this one {model.epsilon:g}")
    if model.optional_params and "dist" not in model.heads:
        raise ConfigError("timm has no distilled model without the distillation head")
    if model.distilled != ARCHITECTURES[name][1].get("distilled", False):
        name = "deit_tiny_distilled_patch16_224" if model.distilled else "deit_tiny_patch16_224"
    published = create_model(name)
    own = {
        theirs: getattr(model, ours)
        for ours, theirs in _TIMM_ARGUMENTS.items()
        if _differs(model, published, ours)
    }
    if model.class_position != published.class_position:
        own["no_embed_class"] = not model.class_position
    return name, own


def _differs(model: Model, published: Model, key: str) -> bool:
    return getattr(model, key) != getattr(published, key)


def _write_json(path: storage.Path, content: Mapping[str, Any]) -> None:
    storage.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
