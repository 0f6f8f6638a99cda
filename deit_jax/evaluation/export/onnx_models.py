"""The forward pass of each family of models as operators of ONNX, in NCHW."""

import functools
from typing import Any

import numpy as np

from deit_jax.models import Model, RegNet, VisionTransformer

# `onnx_file.Graph`, called with an operator, its inputs and its attributes.
Graph = Any
_ONE, _SQRT2, _HALF = (np.array([value]) for value in (1.0, 2**0.5, 0.5))


def _shape(*sizes: int) -> np.ndarray:
    """For Reshape: 0 keeps an axis, -1 takes the rest."""
    return np.array(sizes, np.int64)


def _dense(graph: Graph, x: str, params: dict[str, Any]) -> str:
    return graph("Add", graph("MatMul", x, params["kernel"]), params["bias"])


def _layer_norm(graph: Graph, x: str, params: dict[str, Any], epsilon: float) -> str:
    scale, bias = params["scale"], params["bias"]
    return graph("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def _gelu(graph: Graph, x: str) -> str:
    """x/2 (1 + erf(x / sqrt 2)); the operator Gelu is newer than the set of operators."""
    tail = graph("Add", graph("Erf", graph("Div", x, _SQRT2)), _ONE)
    return graph("Mul", graph("Mul", x, tail), _HALF)


def transformer(
    graph: Graph, model: VisionTransformer, variables: dict[str, Any], image: str
) -> dict[str, str]:
    """The tensors `logits` and, with that head, `dist_logits`."""
    params = variables["params"]
    x = _embed(graph, model, params, image)
    for number in range(model.depth):
        x = _block(graph, model, params[f"blocks_{number}"], x)
    x = _layer_norm(graph, x, params["norm"], model.epsilon)
    heads = {"class": ("logits", "head"), "dist": ("dist_logits", "head_dist")}
    found = {}
    for token, (output, head) in enumerate(heads[name] for name in model.heads):
        found[output] = _dense(graph, graph("Gather", x, np.array(token), axis=1), params[head])
    return found


def _embed(graph: Graph, model: VisionTransformer, params: dict[str, Any], image: str) -> str:
    """Patches with tokens and positions, [B, T, D]."""
    dim, size = model.embed_dim, model.patch_size
    kernel = np.transpose(params["patch_embed"]["kernel"], (3, 2, 0, 1))
    bias = np.asarray(params["patch_embed"]["bias"])
    x = graph("Conv", image, kernel, bias, kernel_shape=[size, size], strides=[size, size])
    x = graph("Transpose", graph("Reshape", x, _shape(0, dim, -1)), perm=[0, 2, 1])
    names = ("cls_token", "dist_token")[: model.prefix_tokens]
    tokens = np.concatenate([np.asarray(params[name]) for name in names], axis=1)
    position = np.asarray(params["pos_embed"])
    if model.class_position:
        tokens = tokens + position[:, : len(names)]
        position = position[:, len(names) :]
    rows = graph("Gather", graph("Shape", x), np.array([0]), axis=0)
    sizes = graph("Concat", rows, np.array([len(names), dim]), axis=0)
    return graph("Concat", graph("Expand", tokens, sizes), graph("Add", x, position), axis=1)


def _block(graph: Graph, model: VisionTransformer, params: dict[str, Any], x: str) -> str:
    def branch(y: str, gamma: str) -> str:
        return graph("Mul", y, params[gamma]) if gamma in params else y

    y = _layer_norm(graph, x, params["norm1"], model.epsilon)
    x = graph("Add", x, branch(_attention(graph, model, params["attn"], y), "gamma_1"))
    y = _layer_norm(graph, x, params["norm2"], model.epsilon)
    y = _dense(graph, _gelu(graph, _dense(graph, y, params["mlp"]["fc1"])), params["mlp"]["fc2"])
    return graph("Add", x, branch(y, "gamma_2"))


def _attention(graph: Graph, model: VisionTransformer, params: dict[str, Any], x: str) -> str:
    heads, width = model.num_heads, model.embed_dim // model.num_heads
    qkv = graph("Reshape", _dense(graph, x, params["qkv"]), _shape(0, -1, 3, heads, width))
    query, key, value = (graph("Gather", qkv, np.array(part), axis=2) for part in range(3))
    # [B, T, H, d] -> [B, H, T, d], the keys as [B, H, d, T].
    query, value = (graph("Transpose", part, perm=[0, 2, 1, 3]) for part in (query, value))
    scores = graph("MatMul", query, graph("Transpose", key, perm=[0, 2, 3, 1]))
    weights = graph("Softmax", graph("Mul", scores, np.array([width**-0.5])), axis=-1)
    mixed = graph("Transpose", graph("MatMul", weights, value), perm=[0, 2, 1, 3])
    return _dense(graph, graph("Reshape", mixed, _shape(0, -1, heads * width)), params["proj"])


def regnet(graph: Graph, model: RegNet, variables: dict[str, Any], image: str) -> dict[str, str]:
    """The tensor `logits`; BatchNorm is folded into the convolutions."""
    if not model.folded:
        model, variables = model.fold_batch_norm(variables)
    params = variables["params"]
    convolution = functools.partial(_convolution, graph, model)
    act = functools.partial(_ACTIVATIONS[model.activation], graph)
    x = act(convolution(image, params["stem"], stride=model.stem_stride))
    for stage, depth in enumerate(model.depths):
        for number in range(depth):
            block = params[f"s{stage + 1}_b{number + 1}"]
            stride = model.strides[stage] if number == 0 else 1
            groups = model.widths[stage] // model.group_sizes[stage]
            y = act(convolution(x, block["conv1"]))
            y = act(convolution(y, block["conv2"], stride=stride, groups=groups))
            gate = graph("GlobalAveragePool", y)
            gate = act(convolution(gate, {"conv": block["se"]["fc1"]}))
            gate = graph("Sigmoid", convolution(gate, {"conv": block["se"]["fc2"]}))
            y = convolution(graph("Mul", y, gate), block["conv3"])
            if "downsample" in block:
                x = convolution(x, block["downsample"], stride=stride)
            x = act(graph("Add", y, x))
    pooled = graph("Flatten", graph("GlobalAveragePool", x))
    return {"logits": _dense(graph, pooled, params["head"])}


def _convolution(
    graph: Graph, model: RegNet, x: str, params: dict[str, Any], stride: int = 1, groups: int = 1
) -> str:
    """A convolution with its bias, then GroupNorm where there is one."""
    kernel = np.transpose(params["conv"]["kernel"], (3, 2, 0, 1))
    size = kernel.shape[-1]
    weights = [kernel, *(params["conv"][key] for key in ("bias",) if key in params["conv"])]
    options = {"kernel_shape": [size, size], "pads": [size // 2] * 4}
    y = graph("Conv", x, *weights, strides=[stride, stride], group=groups, **options)
    if "bn" not in params:
        return y
    assert model.norm_group, "BatchNorm is folded"
    groups = kernel.shape[0] // model.norm_group
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
    parts = graph("Reshape", y, _shape(0, groups, -1))
    normal = graph("InstanceNormalization", parts, ones, zeros, epsilon=1e-5)
    scale, bias = (np.reshape(params["bn"][key], (-1, 1, 1)) for key in ("scale", "bias"))
    return graph("Add", graph("Mul", graph("Reshape", normal, graph("Shape", y)), scale), bias)


_ACTIVATIONS = {
    "relu": lambda graph, x: graph("Relu", x),
    "silu": lambda graph, x: graph("Mul", x, graph("Sigmoid", x)),
}
# A family of models -> function (graph, model, variables, image) to its outputs by name.
GRAPHS: dict[type[Model], Any] = {VisionTransformer: transformer, RegNet: regnet}
