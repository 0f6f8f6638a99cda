"""Fine-tuning on your own photos, or on any prepared data set, from any checkpoint.

    python train.py --config=configs/finetune.py --workdir=runs/mine \
        --config.data.source=folder --config.data.path=PHOTOS \
        --config.init=deit_small_patch16_224-cd65a155.pth --config.init_drop_head=true

PHOTOS holds train/<class>/*.jpg and val/<class>/*.jpg; the names of the classes are kept
in the checkpoint. Without `config.init` the model starts from random weights, which
needs far more photos. Variants are the sizes ti, s, b at 224 and b384; `s` is the
default. With a teacher trained on the same classes: --config.model.name=
deit_small_distilled_patch16_224 --config.loss.distillation=hard --config.teacher.init=RUN.

The learning rate and weight decay are those of the published fine-tuning at 384 (batch
512, AdamW 5e-6 constant after the warm-up, decay 1e-8, stochastic depth off) with a rate
ten times higher for a head that is new. One GPU is enough; minutes for a thousand photos.
"""

from configs import common
from ml_collections import ConfigDict

VARIANTS = {
    "s": "deit_small_patch16_224",
    "ti": "deit_tiny_patch16_224",
    "b": "deit_base_patch16_224",
    "b384": "deit_base_patch16_384",
}


def get_config(variant: str) -> ConfigDict:
    finetuning = ConfigDict(
        {
            "model": {"name": VARIANTS[variant], "dtype": "bfloat16", "drop_path_rate": 0.0},
            "data": {"source": "folder"},
            "input": {"canvas": 512, "repeats": 1},
            "optim": {"weight_decay": 1e-8},
            "schedule": {
                "base_lr": 5e-5, "min_lr": 5e-6, "warmup_epochs": 1.0, "scale_by_batch": 512,
            },
            "step": {"ema_decay": 0.0},
            "train": {"batch_size": 64, "total_epochs": 30.0, "eval_every_epochs": 1.0},
            "eval": {"batch_size": 64},
        }
    )
    return common.merged(common.deit_training(), finetuning)
