"""Writes tests/vectors/schedules.npz: timm's cosine curve, by epoch, within epochs and as trained.

Run with torch and timm installed, and pycls checked out in DIR:
`python tests/reference/make_schedules.py DIR`.
"""

import pathlib
import sys
import types

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
    "half_epochs": (123, 3e-4, 2e-5, 7.5),
}
# name: (epochs, peak, floor, warm-up epochs, first rate)
PYCLS = {
    "regnety_160": (100, 0.2, 0.0, 5, 0.02),
    "regnety_040": (100, 0.4, 0.0, 5, 0.04),
    "pycls_floor": (37, 0.3, 0.003, 3, 0.1),
    "pycls_no_warmup": (20, 0.05, 0.0, 0, 0.01),
    "pycls_long_warmup": (12, 1.5, 0.3, 9.5, 0.0),
}
WITHIN = 8  # positions within each epoch


def make(epochs: int, peak: float, floor: float, warmup: int):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=floor, warmup_t=warmup, warmup_lr_init=1e-6
    )
    return optimizer, scheduler


def pycls_rates(folder: str, recipe: tuple[float, ...]) -> np.ndarray:
    """[epochs] of pycls's own function, whose module is run with this recipe as its config."""
    epochs, peak, floor, warmup, first = recipe
    options = {"BASE_LR": peak, "MIN_LR": floor / peak, "LR_POLICY": "cos", "MAX_EPOCH": epochs}
    options |= {"WARMUP_EPOCHS": warmup, "WARMUP_FACTOR": first / peak}
    config, plot = types.ModuleType("pycls.core.config"), types.ModuleType("matplotlib.pyplot")
    config.cfg = types.SimpleNamespace(OPTIM=types.SimpleNamespace(**options))
    sys.modules |= {
        "pycls": types.ModuleType("pycls"),
        "pycls.core": types.ModuleType("pycls.core"),
    }
    sys.modules |= {"matplotlib": types.ModuleType("matplotlib"), "matplotlib.pyplot": plot}
    sys.modules["pycls.core.config"] = config
    module: dict = {}
    exec(pathlib.Path(folder, "pycls/core/optimizer.py").read_text(), module)
    return np.array([module["get_epoch_lr"](epoch) for epoch in range(epochs)])


def main() -> None:
    out = {}
    for name, recipe in PYCLS.items():
        out[f"{name}_trained"] = pycls_rates(sys.argv[1], recipe)
        out[f"{name}_recipe"] = np.array(recipe, np.float64)
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
