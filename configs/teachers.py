"""Table 2 of the paper (arXiv 2012.12877): convnet teachers, and DeiT-B distilled from each.

    python train.py --config=configs/teachers.py:regnety_160 --workdir=runs/regnety_160 \
        --config.data.data_dir=DIR
    python train.py --config=configs/teachers.py:b_from_regnety_160 --workdir=runs/b_160 \
        --config.data.data_dir=DIR --config.teacher.init=runs/regnety_160

Published top-1: the teacher; its student DeiT-B with token at 224, and fine-tuned at 384.

    teacher       224     student variant      224    384
    deit_b        81.8    b_from_deit_b        81.9   83.1   (teacher: configs/deit.py:b)
    regnety_040   80.0    b_from_regnety_040   82.7   83.6
    regnety_080   81.7    b_from_regnety_080   82.7   83.8
    regnety_120   82.4    b_from_regnety_120   83.1   84.1
    regnety_160   82.9    b_from_regnety_160   83.1   84.2   (configs/deit_distilled.py:b)

The column 224 of the students is the table's; Table 3 gives 83.4 for both heads of the last.
At 384: configs/finetune.py:384_distilled.

The authors say of their teacher that it was trained "with the same data and same
data-augmentation as DeiT" and give no more. The recipe here is what their training script
does when it is started with such a model: Table 9 whole, stochastic depth included. Only
the 16GF has been published (regnety_160-a5fe301d.pth); it ran 20 % slower than DeiT-B, which
took 53 hours on 8 V100.
"""

from ml_collections import ConfigDict

from configs import common, deit

TEACHERS = ("regnety_160", "regnety_120", "regnety_080", "regnety_040")
STUDENTS = {f"b_from_{name}": name for name in TEACHERS} | {
    "b_from_deit_b": "deit_base_patch16_224"
}
VARIANTS = (*TEACHERS, *STUDENTS)
MODES = common.MODES


def get_config(variant: str) -> ConfigDict:
    name = "deit_base_distilled_patch16_224" if variant in STUDENTS else variant
    parts = [ConfigDict({"model": {"name": name}})]
    if variant in STUDENTS:
        parts.append(deit.token_distillation(STUDENTS[variant]))
    return common.merged(deit.imagenet(), deit.table_9(), *parts)
