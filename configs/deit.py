"""DeiT without distillation on ImageNet-1k (arXiv 2012.12877, Table 9; results Table 5).

    python train.py --config=configs/deit.py:b --workdir=runs/deit_b --config.data.data_dir=DIR

Variants and published top-1 at 224 (ImageNet validation): ti 72.2, s 79.8, b 81.8.
300 epochs of 1,251 steps at batch 1,024; b took the authors 53 hours on 8 V100, ti
and s under three days on 4.

The whole recipe is in `table_9`; the other files start from it and state what differs.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "ti": "deit_tiny_patch16_224",
    "s": "deit_small_patch16_224",
    "b": "deit_base_patch16_224",
}
# Images per GPU in the published runs, which drew one mixup or CutMix for all of them: Ti and
# S ran on 4 GPUs, B on 16.
MIX_GROUP = {"ti": 256, "s": 256, "b": 64}
MODES = common.MODES


def get_config(variant: str) -> ConfigDict:
    changed = {
        "model": {"name": VARIANTS[variant]},
        "augment": {"mix_group_limit": MIX_GROUP[variant]},
    }
    return common.merged(imagenet(), table_9(), changed)


def imagenet() -> ConfigDict:
    """ImageNet-1k as prepared by tensorflow-datasets."""
    data = {"source": "tfds", "name": "imagenet2012"}
    return ConfigDict({"data": data | {"train_split": "train", "eval_split": "validation"}})


def table_9() -> ConfigDict:
    """Table 9, column DeiT-B, which the authors use for all sizes.

    Comments give the row of the table, or where else a value comes from.
    """
    return ConfigDict(
        {
            "model": {
                "drop_path_rate": 0.1,  # Stoch. Depth; grows linearly from 0 in the first block
                "dtype": "auto",  # ours: bfloat16 activations where there are units for them
                # Dropout: none, which is the models' default (`dropout_rate`).
            },
            "input": {
                "repeats": 3,  # Repeated Aug: an epoch has a third of the images, each 3 times
                "canvas": 512,  # ours; larger images are shrunk to this side before the crop
            },
            "augment": {
                "crop": "rrc",  # random resized crop of 8 % to 100 % of the area: timm's default
                "hflip": 0.5,  # horizontal flip: timm's default
                "auto_augment": "rand-m9-mstd0.5-inc1",  # Rand Augment: 9/0.5
                "erasing_prob": 0.25,  # Erasing prob.
                "mixup": 0.8,  # Mixup "prob.", which is the alpha of its beta distribution
                "cutmix": 1.0,  # Cutmix "prob.", likewise alpha
                "mix_prob": 1.0,  # official code: every batch is mixed ...
                "switch_prob": 0.5,  # ... by CutMix in half of the cases, else by mixup
                "smoothing": 0.1,  # Label smoothing
            },
            "loss": {
                "base": "ce",  # cross-entropy with the mixed, smoothed targets
                "distillation": "none",  # see configs/deit_distilled.py
            },
            "optim": {
                "name": "adamw",  # Optimizer
                "weight_decay": 0.05,  # Weight decay; none on biases, norms, tokens, positions
                "clip_norm": None,  # Gradient Clip.: none
            },
            "schedule": {
                # Learning rate decay: cosine, in the official loop's way: the rate is set between
                # epochs, one epoch late. `cosine` is the same curve step by step.
                "kind": "timm_epoch",
                "base_lr": 5e-4,  # Learning rate: 0.0005 ...
                "scale_by_batch": 512,  # ... x batch size / 512
                "warmup_epochs": 5.0,  # Warmup epochs
                "warmup_lr": 1e-6,  # official code: where the warm-up starts
                "min_lr": 1e-5,  # official code: where the cosine ends
            },
            "step": {
                "ema_decay": 0.99996  # official code; no published number is of averaged weights
            },
            "train": {
                "batch_size": 1024,  # Batch size; counts the repeats
                "total_epochs": 300.0,  # Epochs
            },
            "eval": {
                "crop_ratio": 0.875  # official code: short side to 224 / 0.875 = 256, center crop
            },
        }
    )


def token_distillation(teacher: str) -> ConfigDict:
    """The paper's distillation: hard labels of `teacher` on the distillation token."""
    return ConfigDict(
        {
            "teacher": {"name": teacher, "init": ""},
            "loss": {"distillation": "hard", "distill_on": "token", "alpha": 0.5},
        }
    )
