"""The reference implementations with given weights: timm's, and those of transformers."""

import contextlib

import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    # A torchvision without its compiled operators still imports once these are declared.
    _LIBRARY = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import transformers
from random_weights import random_state


def with_random_weights(model: torch.nn.Module) -> torch.nn.Module:
    """`model` in evaluation mode with the weights of `random_state`."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = {name: torch.from_numpy(np.array(v)) for name, v in random_state(shapes).items()}
    model.load_state_dict(state)
    return model.eval()


def timm_model(name: str, **kwargs) -> torch.nn.Module:
    return with_random_weights(timm.create_model(name, **kwargs))


def hf_model(architecture: str, **config) -> torch.nn.Module:
    """A transformers model from the keyword arguments of its configuration."""
    cls = getattr(transformers, architecture)
    return with_random_weights(cls(cls.config_class(**config)))


def hf_config(dim: int, depth: int, heads: int, **kwargs) -> dict:
    """Arguments of DeiTConfig and ViTConfig."""
    return {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
    } | kwargs


@torch.no_grad()
def run(model: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    """`logits`, `dist_logits` (where there are) and the output of every block.

    Keys of the blocks are ours: `blocks_0`, ... [B, T, D]; `stem`, `s1_b1`, ... [B, h, w, C].
    """
    image = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    results: dict[str, np.ndarray] = {}
    with contextlib.ExitStack() as stack:
        for key, module in _blocks(model).items():
            handle = module.register_forward_hook(_recorder(results, key))
            stack.callback(handle.remove)
        output = model(image)
    if hasattr(model, "head_dist"):
        tokens = model.forward_features(image)
        results["logits"] = model.head(tokens[:, 0]).numpy()
        results["dist_logits"] = model.head_dist(tokens[:, 1]).numpy()
    elif hasattr(output, "cls_logits"):
        results["logits"] = output.cls_logits.numpy()
        results["dist_logits"] = output.distillation_logits.numpy()
    else:
        results["logits"] = getattr(output, "logits", output).numpy()
    return results


def _recorder(results: dict[str, np.ndarray], key: str):
    def record(module, arguments, output):
        value = output[0] if isinstance(output, tuple) else output
        results[key] = (value.permute(0, 2, 3, 1) if value.ndim == 4 else value).numpy().copy()

    return record


def _blocks(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    if hasattr(model, "blocks"):
        return {f"blocks_{i}": block for i, block in enumerate(model.blocks)}
    if hasattr(model, "s1"):
        found = {"stem": model.stem}
        for stage in range(1, 10):
            for name, block in getattr(model, f"s{stage}", torch.nn.Module()).named_children():
                found[f"s{stage}_{name}"] = block
        return found
    inner = getattr(model, "deit", None) or getattr(model, "vit", None)
    if inner is not None:
        layers = inner.layers if hasattr(inner, "layers") else inner.encoder.layer
        return {f"blocks_{i}": layer for i, layer in enumerate(layers)}
    return {
        f"s{s + 1}_b{b + 1}": layer
        for s, stage in enumerate(model.regnet.encoder.stages)
        for b, layer in enumerate(stage.layers)
    }
