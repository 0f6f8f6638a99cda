"""DeiT without teacher as MMPretrain trains it, with higher accuracy for Ti and S than the paper.

    python train.py --config=configs/mmpretrain.py:s --workdir=runs/mmpretrain_s \
        --config.data.data_dir=DIR

Top-1 (ImageNet validation) by MMPretrain's README, and the paper's (arXiv 2012.12877, Table 5):
ti 74.50 (72.2), s 80.69 (79.8), b 81.76 (81.8). Source: configs/deit/deit-*_in1k.py of
open-mmlab/mmpretrain, with the data set and schedule files of Swin that they build on.

What differs from Table 9: no repeated augmentation; 20 epochs of warm-up, after which the
cosine falls over the 280 epochs that are left; gradients clipped at norm 5; for ti and s
neither stochastic depth nor averaged weights. Mixup and CutMix are drawn for each process's
batch (4 of 256 images for ti and s, 16 of 64 for b), with a random partner where DeiT takes
the mirrored row. The warm-up rises with every step (theirs is at the peak one step before
its end), the cosine falls once an epoch, and neither is late as in DeiT's own loop. 300
epochs at batch 1,024; no hours are published.
"""

from ml_collections import ConfigDict

from configs import common, deit

VARIANTS = ("ti", "s", "b")
MODES = common.MODES


def get_config(variant: str) -> ConfigDict:
    changed = {
        "input": {"repeats": 1},
        "optim": {"clip_norm": 5.0},
        "schedule": {
            "kind": "cosine",
            "by_epoch": True,
            "warmup_epochs": 20.0,
            "warmup_prefix": True,
        },
    }
    if variant != "b":
        changed |= {"model": {"drop_path_rate": 0.0}, "step": {"ema_decay": 0.0}}
    return common.merged(deit.get_config(variant), changed)
