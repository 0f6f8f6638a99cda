"""Which model a state dict belongs to, from its names and shapes."""

import math
import re
from typing import Any

import numpy as np

from deit_jax.errors import ConfigError
from deit_jax.models import Model, RegNet, VisionTransformer
from deit_jax.models.registry import ARCHITECTURES

# Attributes that distinguish registered architectures; the image size does not.
_TRANSFORMER_KEYS = ("embed_dim", "depth", "patch_size", "distilled", "class_position")
_REGNET_KEYS = ("widths", "depths", "group_sizes")

_HEADS = (
    "head.weight",
    "head.fc.weight",
    "cls_classifier.weight",
    "classifier.weight",
    "classifier.1.weight",
)
# For each of `names.NAMINGS` a name that only it has; the first that matches is taken.
MARKS = {
    "hf-modules": r"(deit|vit)\.layers\.",
    "hf": r"(deit|vit|regnet)\.",
    "facebook": r".*\.gamma_1$",
    "timm": r"(cls_token|stem\.conv\.weight)$",
}


def naming_of(names: set[str]) -> str:
    """One of `names.NAMINGS`. Raises ConfigError when it is none of them."""
    for naming, mark in MARKS.items():
        if any(re.match(mark, name) for name in names):
            return naming
    first = ", ".join(sorted(names)[:3])
    raise ConfigError(
        f"names of none of timm, facebookresearch/deit and Hugging Face ({first}, ...)"
    )


def guess_model(
    shapes: dict[str, tuple[int, ...]], naming: str, hints: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """(registered name, further arguments of `create_model`) for tensors of these `shapes`.

    `hints` (such as a Hugging Face config.json) give what shapes do not determine: the
    number of heads, an image that is not square.
    Raises ConfigError when the architecture is not registered and hints do not say enough.
    """
    if _find(shapes, "stem.conv.weight", "embedder.convolution.weight") is not None:
        return _guess_regnet(shapes, hints)
    return _guess_transformer(shapes, naming, hints)


def _find(shapes: dict[str, tuple[int, ...]], *endings: str) -> tuple[int, ...] | None:
    for name, shape in shapes.items():
        if name.endswith(endings):
            return shape
    return None


def _need(shapes: dict[str, tuple[int, ...]], ndim: int, *endings: str) -> tuple[int, ...]:
    shape = _find(shapes, *endings)
    if shape is None or len(shape) != ndim or 0 in shape:
        raise ConfigError(f"missing {endings[0]}" if shape is None else f"{endings[0]} is {shape}")
    return shape


def _classes(shapes: dict[str, tuple[int, ...]], *names: str) -> int:
    for name in names:
        if name in shapes:
            return shapes[name][0]
    raise ConfigError(f"missing {names[0]}: the file has no classification head")


def _guess_transformer(
    shapes: dict[str, tuple[int, ...]], naming: str, hints: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    patch = _need(shapes, 4, "patch_embed.proj.weight", "patch_embeddings.projection.weight")
    position = _need(shapes, 3, "pos_embed", "position_embeddings")
    layer = r".*\bblocks\.(\d+)\." if naming in ("timm", "facebook") else r".*\blayers?\.(\d+)\."
    numbers = [int(match[1]) for name in shapes if (match := re.match(layer, name))]
    _check_run(set(numbers), "block")
    distilled = _find(shapes, "dist_token", "distillation_token") is not None
    layer_scale = _find(shapes, ".ls1.gamma", ".gamma_1") is not None
    found = {
        "embed_dim": patch[0],
        "depth": max(numbers) + 1,
        "patch_size": patch[2],
        "distilled": distilled,
        # Plain ViTs with LayerScale and a position for the class token are not published.
        "class_position": not layer_scale,
        "layer_scale_init": 1e-4 if layer_scale else None,
        "num_classes": _classes(
            shapes, "head.weight", "cls_classifier.weight", "classifier.weight"
        ),
    }
    if distilled and _find(shapes, "head_dist.weight", "distillation_classifier.weight") is None:
        found["dist_head"] = False
    tokens = (1 + distilled) if found["class_position"] else 0
    found["image_size"] = _image_size(position[1] - tokens, found["patch_size"], hints)
    return _registered(VisionTransformer, _TRANSFORMER_KEYS, found, hints)


def _check_run(numbers: set[int], what: str) -> None:
    """Numbers must be 0 .. n - 1: a hole means missing tensors, not a smaller model."""
    holes = [n for n in range(len(numbers) + 1) if n not in numbers]
    if holes[0] != len(numbers) or not numbers:
        raise ConfigError(f"missing the tensors of {what} {holes[0]}")


def _image_size(patches: int, patch_size: int, hints: dict[str, Any]) -> Any:
    if "image_size" in hints:
        return hints["image_size"]
    side = math.isqrt(max(patches, 0))
    if side * side != patches or patches == 0:
        raise ConfigError(
            f"position embedding of {patches} patches is not square: name the image_size"
        )
    return side * patch_size


def _guess_regnet(
    shapes: dict[str, tuple[int, ...]], hints: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    pattern = (
        r"(?:s(\d+)\.b(\d+)\.conv2\.conv|.*stages\.(\d+)\.layers\.(\d+)\.layer\.1\.convolution)"
    )
    blocks: dict[int, dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = re.match(pattern + r"\.weight$", name)
        if match and len(shape) == 4 and 0 not in shape:
            stage, block = (int(g) for g in match.groups() if g is not None)
            first = 0 if name.startswith("regnet.") else 1
            blocks.setdefault(stage - first, {})[block - first] = shape
    _check_run(set(blocks), "stage")
    for stage in blocks.values():
        _check_run(set(stage), "block")
    stages = [blocks[stage] for stage in sorted(blocks)]
    found = {
        "widths": tuple(next(iter(stage.values()))[0] for stage in stages),
        "depths": tuple(max(stage) + 1 for stage in stages),
        "group_sizes": tuple(next(iter(stage.values()))[1] for stage in stages),
        "num_classes": _classes(shapes, "head.fc.weight", "classifier.1.weight"),
    }
    return _registered(RegNet, _REGNET_KEYS, found, hints)


def _registered(
    family: type[Model], keys: tuple[str, ...], found: dict[str, Any], hints: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The registered name that agrees on `keys`, the image size deciding between several."""
    defaults = {"class_position": True, "distilled": False, "dist_head": True, "epsilon": 1e-6}
    names = [
        name
        for name, (cls, attributes) in ARCHITECTURES.items()
        if cls is family
        and all(attributes.get(key, defaults.get(key)) == found[key] for key in keys)
    ]
    size = found.get("image_size")
    names.sort(key=lambda name: ARCHITECTURES[name][1]["image_size"] != size)
    arguments = found | hints
    if not names:
        if family is VisionTransformer and "num_heads" not in hints:
            raise ConfigError(
                f"no registered model has embed_dim {found['embed_dim']} and depth "
                f"{found['depth']}: name a model, and its num_heads, which shapes do not determine"
            )
        # Any name of the family will do: the arguments override what it stands for.
        return next(n for n, (cls, _) in ARCHITECTURES.items() if cls is family), arguments
    # LayerScale's start does not matter once it is loaded.
    arguments.pop("layer_scale_init", None)
    published = defaults | ARCHITECTURES[names[0]][1]
    missing = object()
    return names[0], {"num_classes": found["num_classes"]} | {
        key: value for key, value in arguments.items() if published.get(key, missing) != value
    }


def num_classes(shapes: dict[str, tuple[int, ...]], *, default: int) -> int:
    """Rows of the classification head under any naming, `default` where there is none."""
    return next((shapes[name][0] for name in _HEADS if name in shapes), default)


def shapes_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes by name."""
    return {name: tuple(array.shape) for name, array in tensors.items()}
