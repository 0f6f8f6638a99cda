"""Table 3 of the paper (arXiv 2012.12877) in small: CIFAR-10, a convnet teacher, four students.

    python train.py --config=configs/cifar10.py:teacher --workdir=runs/cifar10/teacher \
        --config.data.data_dir=DIR
    python train.py --config=configs/cifar10.py:token --workdir=runs/cifar10/token \
        --config.data.data_dir=DIR --config.teacher.init=runs/cifar10/teacher

`none`, `soft` and `hard` are rows 1 to 3 of the table, `token` gives rows 4 to 6: its class
head, its distillation head, and both. benchmarks/table3.py trains the teacher, runs all rows
over several seeds and writes the table with its spreads.

The full form is DeiT's recipe (Table 9) with what 32 pixels ask for: patches of 4, a random
crop of the image padded by 4 instead of a crop of 8 % to 100 % of it, every image once an
epoch, batch 512 at 1e-3 with a cosine that moves every step, and no averaged weights.
Student: 9 blocks of width 192 (4.0 M parameters, 0.27 G multiply-accumulates); teacher: a
RegNetY of 1.0 M (0.18 G) trained by the same recipe, as the paper did. Sized for about five
minutes a run on one data-centre GPU.

`..._short` is for two CPU cores: patches of 8, 6 blocks of width 64 (0.3 M, 5 M
multiply-accumulates), a RegNetY of 0.25 M (11 M), few epochs, and so neither RandAugment nor
erasing nor mixing, which need more epochs than that to pay. Accuracies of either form are
no numbers of the paper, whose table is of ImageNet; the question is the order of the rows.
"""

from ml_collections import ConfigDict

from configs import common, deit

ROWS = ("none", "soft", "hard", "token")
VARIANTS = tuple(f"{row}{form}" for form in ("", "_short") for row in ("teacher", *ROWS))

STUDENT = {
    "": {"patch_size": 4, "embed_dim": 192, "depth": 9, "num_heads": 3, "drop_path_rate": 0.1},
    "_short": {"patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2, "drop_path_rate": 0.0},
}
TEACHER = {
    "": {
        "drop_path_rate": 0.0,
        "stem_width": 32,
        "stem_stride": 1,
        "widths": (64, 128, 256),
        "depths": (1, 3, 2),
        "group_sizes": (64, 64, 64),
        "strides": (1, 2, 2),
    },
    # One group each: XLA's grouped convolutions are slow on CPU.
    "_short": {
        "drop_path_rate": 0.0,
        "stem_width": 24,
        "stem_stride": 1,
        "widths": (32, 64, 128),
        "depths": (1, 1, 1),
        "group_sizes": (32, 64, 128),
        "strides": (2, 2, 2),
    },
}
# Table 3: soft as in the paper, tau 3 and weight .1, the sum divided by batch times classes.
LOSS = {
    "none": {},
    "soft": {"distillation": "soft", "distill_on": "class", "alpha": 0.1, "tau": 3.0},
    "hard": {"distillation": "hard", "distill_on": "class", "alpha": 0.5},
    "token": {"distillation": "hard", "distill_on": "token", "alpha": 0.5},
}
MODES = common.MODES


def get_config(variant: str) -> ConfigDict:
    row = variant.removesuffix("_short")
    form = variant.removeprefix(row)
    parts = [deit.table_9(), ConfigDict(_shared())]
    if form:
        parts.append(ConfigDict(_short()))
    if row == "teacher":
        parts.append(ConfigDict({"model": {"name": "regnety_002"} | TEACHER[form]}))
    else:
        name = f"deit_tiny_{'distilled_' if row == 'token' else ''}patch16_224"
        parts.append(ConfigDict({"model": {"name": name} | STUDENT[form], "loss": LOSS[row]}))
        if row != "none":
            parts.append(ConfigDict({"teacher": {"name": "regnety_002", "init": ""}}))
    return common.merged(*parts)


def _shared() -> dict:
    return {
        "data": {"source": "tfds", "name": "cifar10", "train_split": "train", "eval_split": "test"},
        "model": {"image_size": 32},
        "input": {"canvas": 32, "repeats": 1},
        "augment": {
            "crop": "src",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
        },
        "schedule": {"kind": "cosine", "base_lr": 1e-3, "scale_by_batch": None},
        "step": {"ema_decay": 0.0},
        "train": {
            "batch_size": 512,
            "total_epochs": 100.0,
            "eval_every_epochs": 20.0,
            "checkpoint_every_epochs": 20.0,
        },
        "eval": {"batch_size": 512, "canvas": 32, "crop_ratio": 1.0},
        "checkpoint": {"keep_latest": 1},
    }


def _short() -> dict:
    return {
        "model": {"dtype": "float32"},
        "augment": {
            "auto_augment": "",
            "color_jitter": 0.0,
            "erasing_prob": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
        },
        "schedule": {"warmup_epochs": 1.0},
        "train": {
            "batch_size": 128,
            "total_epochs": 4.0,
            "eval_every_epochs": 2.0,
            "checkpoint_every_epochs": 2.0,
        },
        "eval": {"batch_size": 500},
    }
