"""DeiT without distillation on ImageNet-1k (arXiv 2012.12877, Table 9; results Table 5).

    python train.py --config=configs/deit.py:b --workdir=runs/deit_b --config.data.data_dir=DIR

Variants and published top-1 at 224 (ImageNet validation): ti 72.2, s 79.8, b 81.8.
300 epochs of 1,251 steps at batch 1,024; b took the authors 53 hours on 8 V100, ti
and s under three days on 4.
"""

from ml_collections import ConfigDict

from configs import common

VARIANTS = {
    "ti": "deit_tiny_patch16_224",
    "s": "deit_small_patch16_224",
    "b": "deit_base_patch16_224",
}


def get_config(variant: str) -> ConfigDict:
    model = ConfigDict(
        {
            "model": {"name": VARIANTS[variant], "dtype": "bfloat16", "drop_path_rate": 0.1},
            "augment": {"mix_group_limit": common.MIX_GROUP[variant]},
        }
    )
    return common.merged(common.imagenet(), common.deit_training(), model)
