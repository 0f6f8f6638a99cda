"""Makes tests/vectors/models_*.npz: answers of timm, transformers and torch.

    python tests/reference/make_models.py

in an environment with torch, timm and transformers. Weights and images are not stored:
both sides make them from names and shapes (`random_weights.py`).
"""

import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import torch_models
from random_weights import random_image, random_tensor

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors"

# name of the vector -> (timm model, arguments); small ones keep every block's output.
SMALL = {
    "deit": ("deit_tiny_patch16_224", {"num_classes": 7}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", {"num_classes": 7}),
    "deit3": ("deit3_small_patch16_224", {"num_classes": 7}),
}
SMALL_SIZE = {"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}
SMALL_SGN = {"w0": 16, "wa": 16.0, "wm": 2.0, "group_size": 16, "depth": 6}
WHOLE = ("deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "regnety_004")


def main() -> None:
    arrays = {}
    for key, (name, kwargs) in SMALL.items():
        model = torch_models.timm_model(name, **SMALL_SIZE, **kwargs)
        arrays |= _prefixed(key, torch_models.run(model, random_image(48, 48)))
    regnet = torch_models.timm_model("regnety_002", num_classes=7)
    arrays |= _prefixed("regnet", torch_models.run(regnet, random_image(64, 64)), keep_every=4)
    sgn = torch_models.timm_model("regnety_040_sgn", num_classes=7, **SMALL_SGN)
    arrays |= _prefixed("regnet_sgn", torch_models.run(sgn, random_image(32, 32)))
    for name in WHOLE:
        results = torch_models.run(torch_models.timm_model(name), random_image(224, 224))
        arrays |= _prefixed(name, {k: v for k, v in results.items() if "logits" in k})
    arrays |= _regnet_training() | _regnet_designs()
    np.savez_compressed(VECTORS / "models_timm.npz", **arrays)
    _torch_files()
    np.savez_compressed(VECTORS / "models_hf.npz", **_hugging_face())
    np.savez_compressed(VECTORS / "models_position.npz", **_position())


def _regnet_training() -> dict[str, np.ndarray]:
    """One step's logits in training mode and the running statistics behind it."""
    model = torch_models.timm_model("regnety_002", num_classes=7).train()
    image = torch.from_numpy(random_image(64, 64).transpose(0, 3, 1, 2).copy())
    arrays = {"regnet_train/logits": model(image).detach().numpy()}
    for name, value in model.named_buffers():
        if name.startswith(("stem", "s4.b7.")) and "running" in name:
            arrays[f"regnet_train/{name}"] = value.numpy()
    return arrays


def _regnet_designs() -> dict[str, np.ndarray]:
    """[stage, (width, depth, group size)], and parameters, of every RegNetY of timm."""
    arrays = {}
    for name in torch_models.timm.list_models("regnety_*"):
        with torch.device("meta"):
            model = torch_models.timm.create_model(name)
        stages = [getattr(model, f"s{number}") for number in range(1, 5)]
        convs = [next(stage.children()).conv2.conv for stage in stages]
        rows = [
            (c.out_channels, len(list(s.children())), c.weight.shape[1])
            for s, c in zip(stages, convs, strict=True)
        ]
        arrays[f"design/{name}"] = np.array(rows)
        arrays[f"parameters/{name}"] = np.array(sum(p.numel() for p in model.parameters()))
    return arrays


def _torch_files() -> None:
    """Small files as torch writes them today and as it did before version 1.6."""
    model = torch_models.timm_model(
        "deit_tiny_distilled_patch16_224",
        img_size=16,
        patch_size=8,
        embed_dim=8,
        depth=2,
        num_heads=2,
        num_classes=3,
    )
    state = {"model": model.state_dict()}
    torch.save(state, VECTORS / "models_zip.pth")
    torch.save(state, VECTORS / "models_legacy.pth", _use_new_zipfile_serialization=False)


def _hugging_face() -> dict[str, np.ndarray]:
    arrays = {}
    config = torch_models.hf_config(32, 2, 2, image_size=48, patch_size=16, num_labels=7)
    for key, architecture in (
        ("deit_teacher", "DeiTForImageClassificationWithTeacher"),
        ("deit", "DeiTForImageClassification"),
        ("vit", "ViTForImageClassification"),
    ):
        model = torch_models.hf_model(architecture, **config)
        model.config._attn_implementation = "eager"
        arrays |= _prefixed(key, torch_models.run(model, random_image(48, 48)))
    regnet = torch_models.hf_model(
        "RegNetForImageClassification",
        embedding_size=32,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        groups_width=8,
        layer_type="y",
        num_labels=7,
    )
    return arrays | _prefixed("regnet", torch_models.run(regnet, random_image(48, 48)))


def _position() -> dict[str, np.ndarray]:
    """torch's bicubic on grids [h, w, 4]: the published 14 -> 24, and odd ones."""
    arrays = {}
    for old, new in (
        ((14, 14), (24, 24)),
        ((24, 24), (14, 14)),
        ((3, 5), (7, 2)),
        ((1, 2), (3, 3)),
    ):
        grid = random_tensor(f"{old}", (1, 4, *old))
        out = torch.nn.functional.interpolate(
            torch.from_numpy(grid), size=new, mode="bicubic", align_corners=False
        )
        arrays[f"{old[0]}x{old[1]}_{new[0]}x{new[1]}"] = out.permute(0, 2, 3, 1).numpy()
    return arrays


def _prefixed(key: str, results: dict[str, np.ndarray], keep_every: int = 1):
    blocks = [name for name in results if "logits" not in name]
    kept = set(blocks[::keep_every]) | {name for name in results if "logits" in name}
    return {f"{key}/{name}": value for name, value in results.items() if name in kept}


if __name__ == "__main__":
    main()
