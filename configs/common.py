"""Sections that several recipes share. A recipe states what makes it what it is; this is the rest."""

from ml_collections import ConfigDict


def imagenet() -> ConfigDict:
    """ImageNet-1k as prepared by tensorflow-datasets; repeated augmentation as published."""
    return ConfigDict(
        {
            "data": {
                "source": "tfds",
                "name": "imagenet2012",
                "train_split": "train",
                "eval_split": "validation",
            },
            "input": {"canvas": 512, "repeats": 3},
        }
    )


def deit_training() -> ConfigDict:
    """Table 9 of the paper: the training recipe of DeiT, all sizes."""
    return ConfigDict(
        {
            "augment": {
                "crop": "rrc",
                "scale": (0.08, 1.0),
                "hflip": 0.5,
                "auto_augment": "rand-m9-mstd0.5-inc1",
                "erasing_prob": 0.25,
                "mixup": 0.8,
                "cutmix": 1.0,
                "mix_prob": 1.0,
                "switch_prob": 0.5,
                "smoothing": 0.1,
            },
            "optim": {"name": "adamw", "weight_decay": 0.05, "clip_norm": None},
            "schedule": {
                "kind": "cosine",
                "base_lr": 5e-4,
                "scale_by_batch": 512,
                "warmup_epochs": 5.0,
                "warmup_lr": 1e-6,
                "min_lr": 1e-5,
            },
            "step": {"ema_decay": 0.99996},
            "train": {"batch_size": 1024, "total_epochs": 300.0},
            "eval": {"crop_ratio": 0.875},
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


# Images on one GPU of the published runs, which drew one mix for them: Ti and S ran on 4
# GPUs, B on 16.
MIX_GROUP = {"ti": 256, "s": 256, "b": 64}

# Overrides that make any recipe a matter of seconds: a tiny model, three steps, small images.
TINY = (
    "model.image_size=32",
    "model.dtype=float32",
    "input.canvas=64",
    "input.threads=1",
    "train.batch_size=16",
    "train.total_steps=3",
    "train.log_every_steps=1",
    "train.eval_every_steps=3",
    "train.checkpoint_every_steps=1",
    "eval.batch_size=16",
    "eval.canvas=64",
    "schedule.warmup_epochs=0",
)
TINY_DEIT = (
    *TINY,
    "model.patch_size=16",
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
)
TINY_REGNET = (
    *TINY,
    "model.widths=8,16",
    "model.depths=1,1",
    "model.group_sizes=4,4",
    "model.strides=2,2",
)


def merged(*parts: ConfigDict) -> ConfigDict:
    """Sections of all parts, later values winning, new keys allowed."""
    config = ConfigDict()
    for part in parts:
        for section, value in part.items():
            if isinstance(value, ConfigDict) and section in config:
                for key, item in value.items():
                    if key in config[section]:
                        with config[section].ignore_type():
                            config[section][key] = item
                    else:
                        config[section][key] = item
            else:
                config[section] = value
    return config
