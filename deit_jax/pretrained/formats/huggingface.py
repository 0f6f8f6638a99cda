"""Folders of Hugging Face: which file holds the weights, and the JSON files beside them."""

import json
from typing import Any

from deit_jax import storage
from deit_jax.errors import ConfigError
from deit_jax.models import Model, RegNet, VisionTransformer
from deit_jax.models.registry import ARCHITECTURES

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def is_folder(path: storage.Path) -> bool:
    """Whether this is a folder with weights of Hugging Face, whole or split."""
    files = (f"{name}{end}" for name in _WEIGHTS for end in ("", ".index.json"))
    return any((path / file).is_file() for file in files)


def weights_file(folder: storage.Path) -> storage.Path:
    """The file with the weights. Raises ConfigError when they are split over several files."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{folder}: weights split over several files are not read; join them first")


def read_config(folder: storage.Path) -> dict[str, Any]:
    """`config.json`, `{}` where there is none.

    Raises:
      ConfigError: it is damaged, or of another family of models than DeiT, ViT and RegNet.
    """
    path = folder / "config.json"
    config = _read_json(path)
    if not config:
        return {}
    if not isinstance(config.get("id2label", {}), dict):
        raise ConfigError(f"{path}: damaged file (not the settings of a model)")
    if config.get("model_type") not in ("deit", "vit", "regnet"):
        raise ConfigError(
            f"{path}: model_type {config.get('model_type')!r}; known: deit, vit, regnet"
        )
    return config


def read_image(folder: storage.Path) -> dict[str, Any]:
    """`mean` and `std` of preprocessor_config.json, `{}` where there is none."""
    config = _read_json(folder / "preprocessor_config.json")
    known = {"mean": "image_mean", "std": "image_std"}
    return {ours: config[theirs] for ours, theirs in known.items() if theirs in config}


def read_timm(folder: storage.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of `create_model`, `image`) of timm's config.json; `{}` where there is none.

    Of the arguments those that the shapes of a state dict do not determine.
    """
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("architecture"), str):
        return {}, {}
    sections = config.get("model_args", {}), config.get("pretrained_cfg", config)
    if not all(isinstance(section, dict) for section in sections):
        raise ConfigError(f"{folder / 'config.json'}: damaged file (not the settings of a model)")
    given, pretrained = sections
    _, published = ARCHITECTURES.get(config["architecture"], (None, {}))
    hints = {"num_heads": published["num_heads"]} if "num_heads" in published else {}
    names = {"num_heads": "num_heads", "image_size": "img_size"}
    hints |= {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    names = {"mean": "mean", "std": "std", "crop_ratio": "crop_pct"}
    return hints, {ours: pretrained[name] for ours, name in names.items() if name in pretrained}


def timm_class_names(folder: storage.Path) -> list[str] | None:
    """K names of timm's config.json; None where there are none."""
    config = _read_json(folder / "config.json")
    section = config.get("pretrained_cfg", {})
    inside = section.get("label_names") if isinstance(section, dict) else None
    return config.get("label_names", inside)


def _read_json(path: storage.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: damaged file ({error})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: damaged file (not the settings of a model)")
    return config


def model_hints(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `create_model` that a config.json gives.

    Its `layer_norm_eps` (1e-12 in DeiT files of the hub, trained with 1e-6) is followed, so
    that outputs equal those of transformers.
    """
    if not config or config["model_type"] == "regnet":
        return {}
    if config.get("hidden_act", "gelu") != "gelu" or not config.get("qkv_bias", True):
        raise ConfigError("config.json has an activation other than gelu, or no qkv bias")
    known = {"num_heads": "num_attention_heads", "epsilon": "layer_norm_eps"}
    known["image_size"] = "image_size"
    return {ours: config[theirs] for ours, theirs in known.items() if theirs in config}


def class_names(config: dict[str, Any], num_classes: int) -> list[str] | None:
    """K names, None where a config.json has none."""
    labels = config.get("id2label", {})
    # What transformers writes when it has no names.
    default = [f"LABEL_{i}" for i in range(num_classes)]
    names = [labels.get(str(i), label) for i, label in enumerate(default)]
    return None if names == default else names


def model_config(model: Model, class_names: tuple[str, ...] | None) -> dict[str, Any]:
    """`config.json` for transformers. Raises ConfigError for models that it cannot express."""
    if type(model) not in _CONFIGS:
        raise ConfigError(f"transformers has no class for {type(model).__name__}")
    config = _CONFIGS[type(model)](model)
    names = class_names or tuple(f"LABEL_{i}" for i in range(model.num_classes))
    config["id2label"] = {str(i): name for i, name in enumerate(names)}
    config["label2id"] = {name: i for i, name in enumerate(names)}
    return config | {"torch_dtype": "float32"}


def _transformer(model: VisionTransformer) -> dict[str, Any]:
    if model.layer_scale_init is not None or not model.class_position:
        raise ConfigError(
            "transformers has no class for DeiT-III (LayerScale, no class position); use --to=timm"
        )
    if model.distilled:
        suffix = "WithTeacher" if model.dist_head else ""
        kind, architecture = "deit", f"DeiTForImageClassification{suffix}"
    else:
        kind, architecture = "vit", "ViTForImageClassification"
    height, width = model.image_size
    return {
        "model_type": kind,
        "architectures": [architecture],
        "hidden_size": model.embed_dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": int(model.embed_dim * model.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": model.epsilon,
        "image_size": height if height == width else [height, width],
        "patch_size": model.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
    }


def _regnet(model: RegNet) -> dict[str, Any]:
    stages = len(model.widths)
    plain = model.stem_stride == 2 and model.strides == (2,) * stages and model.se_ratio == 0.25
    plain = plain and model.activation == "relu" and model.norm_group is None
    if not plain or len(set(model.group_sizes)) != 1:
        raise ConfigError(
            "transformers' RegNet has strides of 2, squeeze ratio .25, one group size, BatchNorm "
            "and ReLU; use --to=timm"
        )
    return {
        "model_type": "regnet",
        "architectures": ["RegNetForImageClassification"],
        "layer_type": "y",
        "embedding_size": model.stem_width,
        "hidden_sizes": list(model.widths),
        "depths": list(model.depths),
        "groups_width": model.group_sizes[0],
        "hidden_act": "relu",
        "downsample_in_first_stage": True,
        "num_channels": 3,
    }


_CONFIGS = {VisionTransformer: _transformer, RegNet: _regnet}


def processor_config(image: dict[str, Any]) -> dict[str, Any]:
    """`preprocessor_config.json`: short side to size / crop ratio, center crop, normalize.

    Not DeiTImageProcessor, which squashes the image to a square.
    """
    height, width = image["size"]
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(min(height, width) / image["crop_ratio"])},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image["mean"]),
        "image_std": list(image["std"]),
        "do_convert_rgb": True,
    }
