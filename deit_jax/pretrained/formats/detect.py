"""Which model a state dict belongs to, from its names and shapes."""

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

from deit_jax.errors import ConfigError
from deit_jax.models import Model, RegNet, VisionTransformer
from deit_jax.models.registry import ARCHITECTURES

Shapes = dict[str, tuple[int, ...]]

# Attributes that do not distinguish registered architectures.
_FREE = {"image_size", "num_classes", "dist_head", "layer_scale_init"}
_HEADS = ("head", "head.fc", "head.layers.head", "cls_classifier", "classifier", "classifier.1")
# For each of `names.NAMINGS` a name that only it has; the first that matches is chosen.
MARKS = {
    "hf-modules": r"(deit|vit)\.layers\.",
    "hf": r"(deit|vit|regnet)\.",
    "mmpretrain": r"backbone\.cls_token$",
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
        f"names of none of timm, facebookresearch/deit, Hugging Face and MMPretrain ({first}, ...)"
    )


def guess_model(shapes: Shapes, naming: str, hints: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(registered name, further arguments of `create_model`) for tensors of these `shapes`.

    `hints` (such as a Hugging Face config.json) give what shapes do not determine: the
    number of heads, an image that is not square.
    Raises ConfigError when the architecture is not registered and hints do not say enough.
    """
    if _find(shapes, "stem.conv.weight", "embedder.convolution.weight") is not None:
        family, found = RegNet, _guess_regnet(shapes)
    else:
        family, found = VisionTransformer, _guess_transformer(shapes, naming, hints)
    found["num_classes"] = num_classes(shapes)
    return _registered(family, found, hints)


def num_classes(shapes: Shapes, *, default: int | None = None) -> int:
    """Rows of the classification head under any naming, `default` where there is none."""
    for name in [f"{head}.weight" for head in _HEADS]:
        if name in shapes:
            return _need({name: shapes[name]}, 2, name)[0]
    if default is None:
        raise ConfigError(f"the file has no classification head ({', '.join(_HEADS)})")
    return default


def _find(shapes: Shapes, *endings: str) -> tuple[int, ...] | None:
    return next((shape for name, shape in shapes.items() if name.endswith(endings)), None)


def _need(shapes: Shapes, ndim: int, *endings: str) -> tuple[int, ...]:
    shape = _find(shapes, *endings)
    if shape is None or len(shape) != ndim or 0 in shape:
        raise ConfigError(f"missing {endings[0]}" if shape is None else f"{endings[0]} is {shape}")
    return shape


def _guess_transformer(shapes: Shapes, naming: str, hints: dict[str, Any]) -> dict[str, Any]:
    patch = ("patch_embed.proj.weight", "embeddings.projection.weight", "embed.projection.weight")
    width, _, patch_size, _ = _need(shapes, 4, *patch)
    position = _need(shapes, 3, "pos_embed", "position_embeddings")
    timm = naming in ("timm", "facebook")
    layer = r".*\bblocks\.(\d{1,9})\." if timm else r".*?\blayers?\.(\d{1,9})\."
    matches = (re.match(layer, name) for name in shapes)
    depth = _length({int(match[1]) for match in matches if match}, "block")
    distilled = _find(shapes, "dist_token", "distillation_token") is not None
    dist_head = _find(shapes, "head_dist.weight", "distillation_classifier.weight") is not None
    layer_scale = _find(shapes, ".ls1.gamma", ".gamma_1", ".gamma1.weight") is not None
    # Plain ViTs with LayerScale and a position for the class token are not published.
    class_position = not layer_scale
    tokens = 1 + distilled if class_position else 0
    found = {
        "embed_dim": width,
        "depth": depth,
        "patch_size": patch_size,
        "distilled": distilled,
        "class_position": class_position,
        "layer_scale_init": 1e-4 if layer_scale else None,
        "image_size": _image_size(position[1] - tokens, patch_size, hints),
    }
    return found | ({"dist_head": False} if distilled and not dist_head else {})


def _length(numbers: Collection[int], what: str) -> int:
    """n for the numbers 0 .. n - 1: a hole means missing tensors, not a smaller model."""
    hole = next(n for n in range(len(numbers) + 1) if n not in numbers)
    if hole != len(numbers) or not numbers:
        raise ConfigError(f"missing the tensors of {what} {hole}")
    return hole


def _image_size(patches: int, patch_size: int, hints: dict[str, Any]) -> Any:
    if "image_size" in hints:
        return hints["image_size"]
    side = math.isqrt(max(patches, 0))
    if side * side != patches or patches == 0:
        raise ConfigError(
            f"position embedding of {patches} patches is not square: name the image_size"
        )
    return side * patch_size


def _guess_regnet(shapes: Shapes) -> dict[str, Any]:
    # Facebook's and timm's numbers start at 1, Hugging Face's at 0.
    pattern = (
        r"(s|.*stages\.)(\d{1,9})\.(?:b|layers\.)(\d{1,9})\.(?:conv2\.conv|layer\.1\.convolution)"
    )
    blocks: dict[int, dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = re.match(pattern + r"\.weight$", name)
        if match and len(shape) == 4 and 0 not in shape:
            first = 1 if match[1] == "s" else 0
            blocks.setdefault(int(match[2]) - first, {})[int(match[3]) - first] = shape
    group_norm = "stem.bn.weight" in shapes and "stem.bn.running_mean" not in shapes
    stages = [blocks[stage] for stage in range(_length(blocks, "stage"))]
    return {
        "widths": tuple(next(iter(stage.values()))[0] for stage in stages),
        "depths": tuple(_length(stage, "block") for stage in stages),
        "group_sizes": tuple(next(iter(stage.values()))[1] for stage in stages),
        # The one combination of timm's; neither the activation nor the groups are in shapes.
        "activation": "silu" if group_norm else "relu",
        "norm_group": 16 if group_norm else None,
    }


def _registered(
    family: type[Model], found: dict[str, Any], hints: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The registered name that agrees with `found`, the image size deciding between several."""
    wanted = {key: value for key, value in found.items() if key not in _FREE}
    fields = dataclasses.fields(family)
    defaults = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    relatives = {
        name: defaults | attributes
        for name, (cls, attributes) in ARCHITECTURES.items()
        if cls is family
    }
    names = [name for name in relatives if wanted.items() <= relatives[name].items()]
    arguments = found | hints
    if not names:
        if family is VisionTransformer and "num_heads" not in hints:
            raise ConfigError(
                f"no registered model has embed_dim {found['embed_dim']} and depth "
                f"{found['depth']}: name a model, and its num_heads, which shapes do not determine"
            )
        if found.get("norm_group") and "norm_group" not in hints:
            raise ConfigError(
                f"no registered RegNet with GroupNorm has widths {found['widths']}: name a model, "
                "and its norm_group and activation, which shapes do not determine"
            )
        # Any name of the family will do: the arguments override what it stands for.
        names = list(relatives)[:1]
    else:
        # LayerScale's start does not matter once it is loaded.
        arguments.pop("layer_scale_init", None)
    size = found.get("image_size")
    name = min(names, key=lambda name: relatives[name]["image_size"] != size)
    published, missing = relatives[name], object()
    return name, {"num_classes": found["num_classes"]} | {
        key: value for key, value in arguments.items() if published.get(key, missing) != value
    }
