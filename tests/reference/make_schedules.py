"""Writes tests/vectors/schedules.npz: timm's cosine curve, by epoch, within epochs and as trained.

Run with torch and timm installed: `python tests/reference/make_schedules.py`.
"""

import pathlib

import numpy as np
import torch

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.scheduler import CosineLRScheduler

# name: (epochs, peak, floor, warm-up epochs)
RECIPES = {
    "base": (300, 1e-3, 1e-5, 5),
    "deit3_small": (800, 4e-3, 1e-5, 5),
    "rising": (60, 7.5e-6, 1e-5, 5),
    "finetune_384": (30, 5e-6, 5e-6, 5),
    "no_warmup": (20, 2e-3, 0.0, 0),
    "short": (37, 7e-4, 3e-6, 3),
}
WITHIN = 8  # positions within each epoch


def make(epochs: int, peak: float, floor: float, warmup: int):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=floor, warmup_t=warmup, warmup_lr_init=1e-6
    )
    return optimizer, scheduler


def main() -> None:
    out = {}
    for name, recipe in RECIPES.items():
        epochs = recipe[0]
        _, scheduler = make(*recipe)
        positions = np.arange(epochs * WITHIN) / WITHIN
        out[f"{name}_curve"] = np.array([scheduler._get_lr(float(t))[0] for t in positions])
        # The official loop: an epoch of training, then scheduler.step(epoch).
        optimizer, scheduler = make(*recipe)
        trained = []
        for epoch in range(epochs):
            trained.append(optimizer.param_groups[0]["lr"])
            scheduler.step(epoch)
        out[f"{name}_trained"] = np.array(trained)
        out[f"{name}_recipe"] = np.array(recipe, np.float64)
    target = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "schedules.npz"
    np.savez_compressed(target, **out)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
