"""Writes tests/vectors/optim.npz: parameters after 20 optimizer steps on fixed gradients.

Run with torch and timm installed: `python tests/reference/make_optim.py`. Parameters and
gradients are drawn with numpy by position in timm's parameter list, so that the test can
draw them again; stored are names, shapes, learning rates and results.
"""

import pathlib

import numpy as np
import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.models.deit import VisionTransformerDistilled
from timm.optim import Lamb, param_groups_layer_decay, param_groups_weight_decay

STEPS, KEPT = 20, (1, 7, 20)
PUBLISHED = {"pos_embed", "cls_token"}
TIMM = {"pos_embed", "cls_token", "dist_token"}


def small_model() -> VisionTransformerDistilled:
    return VisionTransformerDistilled(
        img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=5
    ).double()


def draw(step: int, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Step 0: parameters; later: gradients, small at first so that clipping starts midway."""
    random = np.random.RandomState(step)
    scale = 0.5 if step == 0 else 0.003 * step
    return [(scale * random.randn(*shape)).astype(np.float32) for shape in shapes]


def freeze_to_attention(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        heads = name.startswith(("head.", "head_dist."))
        parameter.requires_grad = ".attn." in name or heads or name == "pos_embed"


def build(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    kind = name.split("_")[0]
    if name == "adamw_attn":
        freeze_to_attention(model)
    skip = TIMM if name == "adamw_timm" else PUBLISHED
    if name == "adamw_layers":
        groups = param_groups_layer_decay(
            model, weight_decay=0.05, no_weight_decay_list=PUBLISHED, layer_decay=0.65
        )
    elif name == "sgd_all":  # pycls: no group of its own for BatchNorm and biases
        groups = [{"params": model.parameters(), "weight_decay": 0.05}]
    else:
        groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=skip)
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    if kind == "lamb":
        return Lamb(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8, max_grad_norm=1.0)
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=name != "sgd_momentum")


def run(name: str, rates: np.ndarray) -> np.ndarray:
    model = small_model()
    parameters = list(model.parameters())
    shapes = [tuple(p.shape) for p in parameters]
    with torch.no_grad():
        for parameter, value in zip(parameters, draw(0, shapes), strict=True):
            parameter.copy_(torch.from_numpy(value))
    optimizer = build(name, model)
    kept = []
    for step, rate in enumerate(rates, start=1):
        for parameter, value in zip(parameters, draw(step, shapes), strict=True):
            parameter.grad = torch.from_numpy(value).double() if parameter.requires_grad else None
        if name == "adamw_clip":
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = float(rate) * group.get("lr_scale", 1.0)
        optimizer.step()
        if step in KEPT:
            kept.append(np.concatenate([p.detach().numpy().ravel() for p in parameters]))
    return np.stack(kept).astype(np.float32)


def main() -> None:
    rates = (0.02 * (1 + np.cos(np.linspace(0, 3, STEPS)))).astype(np.float32)
    model = small_model()
    names = [name for name, _ in model.named_parameters()]
    out = {
        "names": np.array(names),
        "shapes": np.array([",".join(map(str, p.shape)) for p in model.parameters()]),
        "rates": rates,
        "kept": np.array(KEPT),
    }
    variants = (
        "adamw",
        "adamw_timm",
        "adamw_layers",
        "adamw_clip",
        "adamw_attn",
        "lamb",
        "sgd_nesterov",
        "sgd_momentum",
        "sgd_all",
    )
    for name in variants:
        out[name] = run(name, rates)
    target = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "optim.npz"
    np.savez_compressed(target, **out)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
