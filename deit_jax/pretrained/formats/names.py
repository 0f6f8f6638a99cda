"""Names of one tensor in the different frameworks, as one table per model.

`entries(model, naming)` lists, for each of our arrays, the names and the shape it has
in a torch state dict. Reading and writing are the two directions of the same table,
so what one accepts the other produces.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from deit_jax.errors import ConfigError
from deit_jax.models import Model, RegNet, VisionTransformer, abstract_variables

_FLOATS = [np.dtype(kind) for kind in ("float16", "float32", "float64", ml_dtypes.bfloat16)]

# timm name -> Hugging Face name, of DeiT and ViT classes. `{m}` is `deit` or `vit`.
_HF_TRANSFORMER = [
    (r"cls_token$", "{m}.embeddings.cls_token"),
    (r"dist_token$", "{m}.embeddings.distillation_token"),
    (r"pos_embed$", "{m}.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(.*)$", r"{m}.embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm1\.(.*)$", r"{m}.encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.*)$", r"{m}.encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)$", r"{m}.encoder.layer.\1.attention.output.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(.*)$", r"{m}.encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(.*)$", r"{m}.encoder.layer.\1.output.dense.\2"),
    (r"norm\.(.*)$", r"{m}.layernorm.\1"),
]
_HF_REGNET = [
    (r"stem\.conv\.(.*)$", r"regnet.embedder.embedder.convolution.\1"),
    (r"stem\.bn\.(.*)$", r"regnet.embedder.embedder.normalization.\1"),
    (r"(s\d+\.b\d+)\.se\.fc1\.(.*)$", r"\1.layer.2.attention.0.\2"),
    (r"(s\d+\.b\d+)\.se\.fc2\.(.*)$", r"\1.layer.2.attention.2.\2"),
    (r"(s\d+\.b\d+)\.conv1\.(.*)$", r"\1.layer.0.\2"),
    (r"(s\d+\.b\d+)\.conv2\.(.*)$", r"\1.layer.1.\2"),
    (r"(s\d+\.b\d+)\.conv3\.(.*)$", r"\1.layer.3.\2"),
    (r"(s\d+\.b\d+)\.downsample\.(.*)$", r"\1.shortcut.\2"),
    (r"head\.fc\.(.*)$", r"classifier.1.\1"),
]
# What transformers >= 5 calls its modules in memory; its files keep the older names.
_HF_MODULES = [
    (r"\.encoder\.layer\.", ".layers."),
    (
        r"\.attention\.attention\.(query|key|value)\.",
        lambda match: f".attention.{match[1][0]}_proj.",
    ),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays: `path` in `variables`, its torch `names` and torch `shape`.

    Several names: the torch tensors are parts of it along their first axis (q, k, v).
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...] | None

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of each of the named tensors."""
        if len(self.names) == 1:
            return self.shape
        return (self.shape[0] // len(self.names), *self.shape[1:])


def _cached(function: Callable) -> Callable:
    """Flax modules are hashable, but not by their types."""
    return functools.lru_cache(maxsize=32)(function)


@_cached
def entries(model: Model, naming: str) -> tuple[Entry, ...]:
    """The table of `model` under one of NAMINGS."""
    template = abstract_variables(model)
    table = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(template):
        path = tuple(key.key for key in keys)
        axes = _axes(path, leaf.ndim)
        shape = tuple(leaf.shape[axis] for axis in axes) if axes else leaf.shape
        names = NAMINGS[naming](_timm_name(path, model), model)
        table.append(Entry(path, names, shape, axes))
    return tuple(table)


def _axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...] | None:
    """Order of our axes in torch: HWIO -> OIHW, [I, O] -> [O, I]."""
    if path[-1] != "kernel":
        return None
    return (3, 2, 0, 1) if ndim == 4 else (1, 0)


def _timm_name(path: tuple[str, ...], model: Model) -> str:
    """`('params', 'blocks_0', 'attn', 'qkv', 'kernel')` -> `blocks.0.attn.qkv.weight`."""
    leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    parts = [*path[1:-1], leaf.get(path[-1], path[-1])]
    name = ".".join(parts)
    if type(model) not in _FAMILIES:
        raise ConfigError(f"{type(model).__name__} has no names in timm or Hugging Face")
    return _FAMILIES[type(model)][0](name)


def _timm_regnet_name(name: str) -> str:
    return re.sub(r"^s(\d+)_b", r"s\1.b", name).replace("head.", "head.fc.")


def _timm_transformer_name(name: str) -> str:
    name = re.sub(r"^blocks_", "blocks.", name).replace("patch_embed.", "patch_embed.proj.")
    return re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)


def _timm(name: str, model: Model) -> tuple[str, ...]:
    return (name,)


def _facebook(name: str, model: Model) -> tuple[str, ...]:
    return (re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name),)


def _hf(name: str, model: Model) -> tuple[str, ...]:
    return _FAMILIES[type(model)][1](name, model)


def _hf_modules(name: str, model: Model) -> tuple[str, ...]:
    names = _hf(name, model)
    for pattern, replacement in _HF_MODULES:
        names = tuple(re.sub(pattern, replacement, name) for name in names)
    return names


# Naming -> function of a tensor's timm name and the model to its names in that naming.
NAMINGS = {"timm": _timm, "facebook": _facebook, "hf": _hf, "hf-modules": _hf_modules}


def _hf_regnet_names(name: str, model: Model) -> tuple[str, ...]:
    name = _rename(name, _HF_REGNET)
    name = re.sub(r"^s(\d+)\.b(\d+)", _hf_block, name)
    if ".attention." in name or name.startswith("classifier"):
        return (name,)
    return (name.replace(".conv.", ".convolution.").replace(".bn.", ".normalization."),)


def _hf_block(match: re.Match) -> str:
    return f"regnet.encoder.stages.{int(match[1]) - 1}.layers.{int(match[2]) - 1}"


def _hf_transformer_names(name: str, model: Model) -> tuple[str, ...]:
    module = "deit" if model.distilled else "vit"
    qkv = re.match(r"blocks\.(\d+)\.attn\.qkv\.(.*)$", name)
    if qkv:
        layer = f"{module}.encoder.layer.{qkv[1]}.attention.attention"
        return tuple(f"{layer}.{part}.{qkv[2]}" for part in ("query", "key", "value"))
    if name.startswith("head"):
        with_teacher = model.distilled and model.dist_head
        head = "cls_classifier" if with_teacher else "classifier"
        return (re.sub("^head", head, name.replace("head_dist", "distillation_classifier")),)
    return (_rename(name, _HF_TRANSFORMER).replace("{m}", module),)


# For each family: timm's name from ours, and Hugging Face's names from timm's.
_FAMILIES = {
    VisionTransformer: (_timm_transformer_name, _hf_transformer_names),
    RegNet: (_timm_regnet_name, _hf_regnet_names),
}


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise ConfigError(f"{name} has no Hugging Face name")


def read(table: Sequence[Entry], tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """`variables` (numpy f32) from torch `tensors`.

    Raises ConfigError that lists every missing, unexpected and misshapen tensor.
    torch's `num_batches_tracked` counters are ignored.
    """
    wanted = {name: entry for entry in table for name in entry.names}
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    for name, array in tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in wanted:
            problems.append(f"unexpected {name}")
        elif array.dtype not in _FLOATS:
            problems.append(f"{name} holds {array.dtype} values")
        elif array.shape != wanted[name].part_shape:
            problems.append(f"{name} is {array.shape}, expected {wanted[name].part_shape}")
    if problems:
        raise ConfigError(f"{len(problems)} tensors do not fit: {'; '.join(problems)}")
    variables: dict[str, Any] = {}
    for entry in table:
        parts = [np.asarray(tensors[name], np.float32) for name in entry.names]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if entry.axes:
            value = value.transpose(np.argsort(entry.axes))
        if not np.isfinite(value).all():
            raise ConfigError(f"{entry.names[0]} holds values that are not finite")
        _set(variables, entry.path, np.ascontiguousarray(value))
    return variables


def write(table: Sequence[Entry], variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch tensors by name from `variables`; BatchNorm gets its counter (0), as torch expects."""
    tensors = {}
    for entry in table:
        value = variables
        for key in entry.path:
            value = value[key]
        value = np.asarray(value, np.float32)
        if entry.axes:
            value = value.transpose(entry.axes)
        for name, part in zip(entry.names, np.split(value, len(entry.names)), strict=True):
            tensors[name] = np.ascontiguousarray(part)
            if name.endswith("running_mean"):
                counter = name.replace("running_mean", "num_batches_tracked")
                tensors[counter] = np.array(0, np.int64)
    return tensors


def _set(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
