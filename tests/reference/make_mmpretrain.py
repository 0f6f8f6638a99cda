"""Makes tests/vectors/models_mmpretrain.npz and .pth: answers and a checkpoint of MMPretrain.

    python tests/reference/make_mmpretrain.py

in an environment with torch, timm, transformers and mmpretrain 1.2.0, mmengine-lite 0.10.7 and
mmcv-lite 2.2.0. Weights and images are not stored: see `random_weights.py`.
"""

import pathlib
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import torch_models
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from mmpretrain.apis import get_model
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from random_weights import random_image, random_tensor

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors"

# Our name -> its config; the zoo's 384 pixel models are those of the same name.
CONFIGS = {
    "deit_tiny_patch16_224": "deit-tiny_4xb256_in1k",
    "deit_tiny_distilled_patch16_224": "deit-tiny-distilled_3rdparty_in1k",
    "deit_small_patch16_224": "deit-small_4xb256_in1k",
    "deit_small_distilled_patch16_224": "deit-small-distilled_3rdparty_in1k",
    "deit_base_patch16_224": "deit-base_16xb64_in1k",
    "deit_base_distilled_patch16_224": "deit-base-distilled_3rdparty_in1k",
    "deit_base_patch16_384": "deit-base_224px-pre_3rdparty_in1k-384px",
    "deit_base_distilled_patch16_384": "deit-base-distilled_224px-pre_3rdparty_in1k-384px",
    "deit3_small_patch16_224": "deit3-small-p16_3rdparty_in1k",
}
CLASSES = ("cat", "dog", "emu")


def main() -> None:
    arrays = {}
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            state = get_model(config, pretrained=False).state_dict()
        rows = [f"{key} {'x'.join(map(str, value.shape))}" for key, value in state.items()]
        arrays[f"shapes/{name}"] = np.array(rows)
    image = random_image(48, 48)
    for distilled in (False, True):
        model = torch_models.with_random_weights(small(distilled, 48, 16, 32, 3, 7))
        results = answers(model, torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
        key = "deit_distilled" if distilled else "deit"
        arrays |= {f"{key}/{name}": value.numpy() for name, value in results.items()}
    raw, ema = train(VECTORS / "models_mmpretrain.pth")
    arrays |= {f"raw/{name}": value.numpy() for name, value in raw.items()}
    arrays |= {f"ema/{name}": value.numpy() for name, value in ema.items()}
    np.savez_compressed(VECTORS / "models_mmpretrain.npz", **arrays)


def small(distilled: bool, size: int, patch: int, dim: int, depth: int, classes: int):
    """An ImageClassifier of two heads of attention."""
    arch = {"embed_dims": dim, "num_layers": depth, "num_heads": 2}
    arch["feedforward_channels"] = 4 * dim
    backbone = "DistilledVisionTransformer" if distilled else "VisionTransformer"
    head = "DeiTClsHead" if distilled else "VisionTransformerClsHead"
    return MODELS.build(
        {
            "type": "ImageClassifier",
            "backbone": {"type": backbone, "arch": arch, "img_size": size, "patch_size": patch},
            "head": {"type": head, "num_classes": classes, "in_channels": dim},
        }
    )


@torch.no_grad()
def answers(model: torch.nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Logits of every head, and the published sum of them, halved."""
    features = model.backbone(image)[-1]
    results = {"score": model(image)}
    if isinstance(features, tuple):
        results["logits"] = model.head.layers.head(features[0])
        results["dist_logits"] = model.head.layers.head_dist(features[1])
    else:
        results["logits"] = model.head.layers.head(features)
    return results


class Rows(torch.utils.data.Dataset):
    """Four images of three classes."""

    metainfo = {"classes": CLASSES}  # noqa: RUF012

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int):
        image = torch.from_numpy(random_tensor(f"image {row}", (3, 16, 16)))
        return {"inputs": image, "data_samples": DataSample().set_gt_label(row % 3)}


def train(path: pathlib.Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two steps of mmengine's Runner with its EMA; (raw, EMA) weights, and its checkpoint."""
    model = small(False, 16, 8, 8, 2, 3)
    model.load_state_dict(
        torch_models.with_random_weights(small(False, 16, 8, 8, 2, 3)).state_dict()
    )
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model=model,
            work_dir=folder,
            train_dataloader=torch.utils.data.DataLoader(Rows(), 2, collate_fn=default_collate),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={"optimizer": {"type": "AdamW", "lr": 0.01}},
            param_scheduler={"type": "CosineAnnealingLR", "T_max": 1},
            custom_hooks=[{"type": "EMAHook", "momentum": 0.5}],
            default_scope="mmpretrain",
            experiment_name="vectors",
            randomness={"seed": 0},
        )
        runner.train()
        path.write_bytes((pathlib.Path(folder) / "epoch_1.pth").read_bytes())
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    return runner.model.state_dict(), hook.ema_model.module.state_dict()


if __name__ == "__main__":
    main()
