"""DeiT with the distillation token on ImageNet-1k, hard labels of a RegNetY-16GF (arXiv 2012.12877).

    python train.py --config=configs/deit_distilled.py:b --workdir=runs/deit_b_distilled \
        --config.data.data_dir=DIR --config.teacher.init=regnety_160-a5fe301d.pth

Variants and published top-1 at 224 (Table 3, both heads, 300 epochs): ti 74.5, s 81.2,
b 83.4. The teacher costs 12.7 forward passes of ti, 3.5 of s, 0.9 of b. For the 1,000
epochs of Table 5 add --config.train.total_epochs=1000.
"""

from configs import common
from ml_collections import ConfigDict

VARIANTS = {
    "ti": "deit_tiny_distilled_patch16_224",
    "s": "deit_small_distilled_patch16_224",
    "b": "deit_base_distilled_patch16_224",
}


def get_config(variant: str) -> ConfigDict:
    distilled = ConfigDict(
        {
            "model": {"name": VARIANTS[variant], "dtype": "bfloat16", "drop_path_rate": 0.1},
            "teacher": {"name": "regnety_160", "init": ""},
            "loss": {"distillation": "hard", "distill_on": "token", "alpha": 0.5},
        }
    )
    return common.merged(common.imagenet(), common.deit_training(), distilled)
