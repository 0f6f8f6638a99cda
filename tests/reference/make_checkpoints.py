"""Makes tests/vectors/checkpoint_*.pth: what training with the official code and timm saves.

    python tests/reference/make_checkpoints.py

in an environment with torch and timm. The official dictionary is that of main.py of
facebookresearch/deit, the other is written by timm's own CheckpointSaver. The EMA weights are
twice the raw ones.
"""

import argparse
import pathlib
import shutil
import sys
import tempfile

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import torch_models
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV2, NativeScaler

VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors"
SIZE = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}


def main() -> None:
    model = torch_models.timm_model("deit_tiny_distilled_patch16_224", num_classes=3, **SIZE)
    ema = ModelEmaV2(model)
    for value in ema.module.state_dict().values():
        value.mul_(2)
    optimizer = torch.optim.AdamW([model.head.bias], lr=1e-3)
    model.head.bias.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    torch_models.with_random_weights(model)
    args = argparse.Namespace(
        model="deit_tiny_distilled_patch16_224",
        lr=5e-4,
        opt_betas=None,
        drop=0.0,
        eval=False,
        decay_epochs=-30,
        output_dir=pathlib.Path("runs/a"),
        device=torch.device("cpu"),
        amp_dtype=torch.bfloat16,
        cutmix_minmax=[0.2, 0.8],
        mean=(0.485, 0.456, 0.406),
        model_kwargs={"depth": 1},
    )
    official = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": CosineLRScheduler(optimizer, t_initial=300, warmup_t=5).state_dict(),
        "epoch": 7,
        "model_ema": ema.module.state_dict(),
        "scaler": NativeScaler(device="cpu").state_dict(),
        "args": args,
    }
    torch.save(official, VECTORS / "checkpoint_official.pth")
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointSaver(
            model, optimizer, args=args, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder
        )
        saver.save_checkpoint(7, metric=71.3)
        shutil.copy(pathlib.Path(folder, "last.pth.tar"), VECTORS / "checkpoint_timm.pth")


if __name__ == "__main__":
    main()
