"""All of DeiT in minutes on a laptop: a convnet teacher, a student with it, one without.

    python train.py --config=configs/quickstart.py:teacher --workdir=runs/quickstart/teacher
    python train.py --config=configs/quickstart.py:student --workdir=runs/quickstart/student
    python train.py --config=configs/quickstart.py:plain --workdir=runs/quickstart/plain

Data: the 1,797 real handwritten digits (8 x 8 pixels, ten classes) that scikit-learn
bundles, a fixed stratified split. `teacher` is a small RegNetY, `student` a small DeiT
with a distillation token that learns from it (hard labels), `plain` the same student
without a teacher. `make quickstart` runs all three and compares them; the README
holds what it printed. Sizes are chosen for two CPU cores, not for accuracy.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("teacher", "student", "plain")
MODES = common.MODES


def get_config(variant: str) -> ConfigDict:
    shared = ConfigDict(
        {
            "data": {"source": "digits"},
            "input": {"canvas": 8, "repeats": 1},
            # Digits have a handedness and few pixels: no flip, crops that keep most of the
            # image, no colour operations; nothing is mixed, which would need a longer run.
            "augment": {
                "crop": "rrc",
                "scale": (0.75, 1.0),
                "ratio": (0.8, 1.25),
                "hflip": 0.0,
                "auto_augment": "",
                "color_jitter": 0.0,
                "erasing_prob": 0.0,
                "mixup": 0.0,
                "cutmix": 0.0,
                "smoothing": 0.1,
                "mean": (0.31, 0.31, 0.31),
                "std": (0.37, 0.37, 0.37),
            },
            "optim": {"name": "adamw", "weight_decay": 0.05},
            "schedule": {"warmup_epochs": 3.0, "scale_by_batch": None},
            "train": {"batch_size": 128, "log_every_steps": 55},
            "step": {"ema_decay": 0.95},
            "eval": {"batch_size": 128, "crop_ratio": 1.0, "canvas": 16},
            "checkpoint": {"keep_latest": 2},
        }
    )
    return common.merged(
        shared, {"teacher": _teacher, "student": _student, "plain": _plain}[variant]()
    )


def _teacher() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "name": "regnety_002",
                "image_size": 16,
                "stem_width": 16,
                "stem_stride": 1,
                "widths": (32, 64),
                "depths": (1, 2),
                # One group each: XLA's grouped convolutions are slow on CPU.
                "group_sizes": (32, 64),
                "strides": (2, 2),
            },
            "schedule": {"base_lr": 3e-3},
            "train": {
                "total_epochs": 30.0,
                "eval_every_epochs": 10.0,
                "checkpoint_every_epochs": 10.0,
            },
        }
    )


def _student() -> ConfigDict:
    return common.merged(
        _plain(),
        ConfigDict(
            {
                "model": {"distilled": True},
                "teacher": {"init": "runs/quickstart/teacher"},
                "loss": {"distillation": "hard", "distill_on": "token", "alpha": 0.5},
            }
        ),
    )


def _plain() -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "name": "deit_tiny_patch16_224",
                "image_size": 16,
                "patch_size": 4,
                "embed_dim": 64,
                "depth": 6,
                "num_heads": 2,
                "drop_path_rate": 0.0,
            },
            "schedule": {"base_lr": 2e-3},
            "train": {
                "total_epochs": 45.0,
                "eval_every_epochs": 15.0,
                "checkpoint_every_epochs": 15.0,
            },
        }
    )
