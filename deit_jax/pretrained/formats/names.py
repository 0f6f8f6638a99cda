"""Names of one tensor in the different frameworks, as one table per model.

`entries(model, naming)` lists, for each of our arrays, the names and the shape it has
in a torch state dict. Reading and writing are the two directions of the same table,
so what one accepts the other produces.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from deit_jax.errors import ConfigError
from deit_jax.models import Model, RegNet, VisionTransformer, abstract_variables
from deit_jax.trees import named_leaves, nested

# (pattern, replacement) pairs, applied one after another.
Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]

_FLOATS = [np.dtype(kind) for kind in ("float16", "float32", "float64", ml_dtypes.bfloat16)]

_LEAVES = [(r"\.(kernel|scale)$", ".weight"), (r"\.(mean|var)$", r".running_\1")]
# Our name -> timm name, and from there -> Hugging Face name, in which `{m}` is `deit` or `vit`,
# `{head}` the class head, and `{part}` stands for three tensors; -> MMPretrain name.
FAMILIES: dict[type[Model], tuple[Rules, Rules, Rules]] = {
    VisionTransformer: (
        [
            (r"^blocks_", "blocks."),
            (r"^patch_embed\.", "patch_embed.proj."),
            (r"\.gamma_([12])$", r".ls\1.gamma"),
        ],
        [
            (r"^cls_token$", "{m}.embeddings.cls_token"),
            (r"^dist_token$", "{m}.embeddings.distillation_token"),
            (r"^pos_embed$", "{m}.embeddings.position_embeddings"),
            (r"^patch_embed\.proj\.", "{m}.embeddings.patch_embeddings.projection."),
            (r"^blocks\.(\d+)\.norm1\.", r"{m}.encoder.layer.\1.layernorm_before."),
            (r"^blocks\.(\d+)\.norm2\.", r"{m}.encoder.layer.\1.layernorm_after."),
            (r"^blocks\.(\d+)\.attn\.qkv\.", r"{m}.encoder.layer.\1.attention.attention.{part}."),
            (r"^blocks\.(\d+)\.attn\.proj\.", r"{m}.encoder.layer.\1.attention.output.dense."),
            (r"^blocks\.(\d+)\.mlp\.fc1\.", r"{m}.encoder.layer.\1.intermediate.dense."),
            (r"^blocks\.(\d+)\.mlp\.fc2\.", r"{m}.encoder.layer.\1.output.dense."),
            (r"^norm\.", "{m}.layernorm."),
            (r"^head\.", "{head}."),
            (r"^head_dist\.", "distillation_classifier."),
        ],
        [
            (r"^blocks\.(\d+)\.", r"layers.\1."),
            (r"\.norm([12])\.", r".ln\1."),
            (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
            (r"\.mlp\.fc2\.", ".ffn.layers.1."),
            (r"\.ls1\.gamma$", ".attn.gamma1.weight"),
            (r"\.ls2\.gamma$", ".ffn.gamma2.weight"),
            (r"^patch_embed\.proj\.", "patch_embed.projection."),
            (r"^norm\.", "ln1."),
            (r"^(cls_token|dist_token|pos_embed|patch_embed|layers|ln1)\b", r"backbone.\1"),
            (r"^head", "head.layers.head"),
        ],
    ),
    RegNet: (
        [(r"^s(\d+)_b", r"s\1.b"), (r"^head\.", "head.fc.")],
        [
            (r"^stem\.conv\.", "regnet.embedder.embedder.convolution."),
            (r"^stem\.bn\.", "regnet.embedder.embedder.normalization."),
            (r"\.se\.fc1\.", ".layer.2.attention.0."),
            (r"\.se\.fc2\.", ".layer.2.attention.2."),
            (r"\.conv1\.", ".layer.0."),
            (r"\.conv2\.", ".layer.1."),
            (r"\.conv3\.", ".layer.3."),
            (r"\.downsample\.", ".shortcut."),
            (r"\.conv\.", ".convolution."),
            (r"\.bn\.", ".normalization."),
            (
                r"^s(\d+)\.b(\d+)\.",
                lambda m: f"regnet.encoder.stages.{int(m[1]) - 1}.layers.{int(m[2]) - 1}.",
            ),
            (r"^head\.fc\.", "classifier.1."),
        ],
        [],
    ),
}
# What transformers >= 5 calls its modules in memory; its files keep the older names.
_HF_MODULES = [
    (r"\.encoder\.layer\.", ".layers."),
    (r"\.attention\.attention\.(.)[a-z]*\.", r".attention.\1_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
]


class Entry(NamedTuple):
    """One of our arrays: its `path` in `variables`, and its torch `names`.

    Several names: the torch tensors are parts of it along their first axis (q, k, v).
    Each has `part_shape`; `axes` are the order of our axes in torch.
    """

    path: str
    names: tuple[str, ...]
    part_shape: tuple[int, ...]
    axes: tuple[int, ...]


def entries(model: Model, naming: str) -> tuple[Entry, ...]:
    """The table of `model` under one of NAMINGS."""
    if type(model) not in FAMILIES:
        raise ConfigError(f"{type(model).__name__} has no names in other libraries")
    table = []
    for path, leaf in named_leaves(abstract_variables(model)).items():
        ours = path.split("/", 1)[1].replace("/", ".")
        timm = _renamed(_renamed(ours, _LEAVES), FAMILIES[type(model)][0])
        names = NAMINGS[naming](timm, model)
        axes = tuple(range(leaf.ndim))
        if path.endswith("/kernel"):  # HWIO -> OIHW, [I, O] -> [O, I]
            axes = (3, 2, 0, 1) if leaf.ndim == 4 else (1, 0)
        first, *rest = (leaf.shape[axis] for axis in axes)
        table.append(Entry(path, names, (first // len(names), *rest), axes))
    return tuple(table)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _hf(name: str, model: Model) -> tuple[str, ...]:
    theirs = _renamed(name, FAMILIES[type(model)][1])
    if theirs == name:
        raise ConfigError(f"{name} has no Hugging Face name")
    module = "deit" if model.optional_params else "vit"
    head = "cls_classifier" if "dist" in model.heads else "classifier"
    parts = ("query", "key", "value") if "{part}" in theirs else ("",)
    return tuple(theirs.format(m=module, head=head, part=part) for part in parts)


def _mmpretrain(name: str, model: Model) -> tuple[str, ...]:
    theirs = _renamed(name, FAMILIES[type(model)][2])
    if theirs == name:
        raise ConfigError(f"{name} has no MMPretrain name")
    return (theirs,)


# Naming -> function of a tensor's timm name and the model to its names in that naming.
NAMINGS: dict[str, Callable[[str, Model], tuple[str, ...]]] = {
    "timm": lambda name, _: (name,),
    "facebook": lambda name, _: (re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name),),
    "mmpretrain": _mmpretrain,
    "hf": _hf,
    "hf-modules": lambda name, model: tuple(_renamed(n, _HF_MODULES) for n in _hf(name, model)),
}


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
    leaves = {}
    for entry in table:
        value = np.concatenate([np.asarray(tensors[name], np.float32) for name in entry.names])
        if not np.isfinite(value).all():
            raise ConfigError(f"{entry.names[0]} holds values that are not finite")
        leaves[entry.path] = np.ascontiguousarray(value.transpose(np.argsort(entry.axes)))
    return nested(leaves)


def write(table: Sequence[Entry], variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch tensors by name from `variables`; BatchNorm gets its counter (0), as torch expects."""
    leaves, tensors = named_leaves(variables), {}
    for path, names, _, axes in table:
        value = np.asarray(leaves[path], np.float32).transpose(axes)
        for name, part in zip(names, np.split(value, len(names)), strict=True):
            tensors[name] = np.ascontiguousarray(part)
            if name.endswith("running_mean"):
                counter = name.replace("running_mean", "num_batches_tracked")
                tensors[counter] = np.array(0, np.int64)
    return tensors
