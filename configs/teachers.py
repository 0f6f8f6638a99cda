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
data-augmentation as DeiT" and give no more. The recipe of `regnety_160` and so on here is what
their training script does when it is started with such a model: Table 9 whole, stochastic depth
included. Only the 16GF has been published (regnety_160-a5fe301d.pth); it ran 20 % slower than
DeiT-B, which took 53 hours on 8 V100.

`regnety_160_dds` and so on are the same models as the authors of RegNet train them ("Designing
Network Design Spaces", arXiv 2003.13678): 100 epochs of plain SGD, a third of the work. Source:
facebookresearch/pycls at 5719de6, configs/dds_baselines/regnety/RegNetY-*GF_dds_8gpu.yaml over
the defaults of pycls.core.config. Published top-1 and hours on 8 V100 (its model zoo, means
of 5 runs): 040 79.4, 17.5 h; 080 79.9, 29.3 h; 120 80.3, 36.9 h; 160 80.4, 50.8 h. For a student:
--config.teacher.init=runs/regnety_160_dds.

What differs from pycls:
- Its crops draw the aspect evenly from 3/4 to 4/3 and swap the sides in half of the cases (here
  log-uniform, as in timm), and all its resizing is bilinear without antialiasing (here bicubic,
  antialiased).
- It starts 3x3 kernels with a deviation that ignores the groups, smaller by the root of their
  number, and the last BatchNorm of a block at 1; here timm's: groups counted, and 0.
- Its BatchNorm has the statistics of each of 8 processes in training and of 8,192 training images,
  taken anew, in evaluation; here those of the whole batch and their running average.
"""

from ml_collections import ConfigDict

from configs import common, deit

TEACHERS = ("regnety_160", "regnety_120", "regnety_080", "regnety_040")
# Images of a step over all GPUs: TRAIN.BATCH_SIZE.
DDS_BATCH = {"regnety_160": 256, "regnety_120": 512, "regnety_080": 512, "regnety_040": 512}
DDS = {f"{name}_dds": name for name in TEACHERS}
STUDENTS = {f"b_from_{name}": name for name in TEACHERS} | {
    "b_from_deit_b": "deit_base_patch16_224"
}
VARIANTS = (*TEACHERS, *DDS, *STUDENTS)
MODES = common.MODES


def get_config(variant: str) -> ConfigDict:
    if variant in DDS:
        name = {"model": {"name": DDS[variant]}}
        return common.merged(deit.imagenet(), dds(DDS_BATCH[DDS[variant]]), name)
    name = "deit_base_distilled_patch16_224" if variant in STUDENTS else variant
    parts = [ConfigDict({"model": {"name": name}})]
    if variant in STUDENTS:
        parts.append(deit.token_distillation(STUDENTS[variant]))
    return common.merged(deit.imagenet(), deit.table_9(), *parts)


def dds(batch_size: int) -> ConfigDict:
    """RegNetY's own recipe. Comments give pycls's option, or where else a value comes from."""
    return ConfigDict(
        {
            "model": {
                "drop_path_rate": 0.0,  # model zoo: no drop connect, no dropout
                "dtype": "float32",  # TRAIN.MIXED_PRECISION False
            },
            "input": {
                "repeats": 1,  # DistributedSampler: every image once per epoch
                "canvas": 512,  # ours; larger images are shrunk to this side before the crop
            },
            "augment": {
                "crop": "rrc",  # random_sized_crop: 8 % to 100 % of the area, to TRAIN.IM_SIZE 224
                "hflip": 0.5,  # horizontal_flip, prob=0.5
                "auto_augment": "",  # TRAIN.AUGMENT: none
                "color_jitter": 0.0,  # none
                "pca_std": 0.1,  # TRAIN.PCA_STD: AlexNet's lighting
                "erasing_prob": 0.0,  # none
                "mixup": 0.0,  # TRAIN.MIXUP_ALPHA
                "cutmix": 0.0,  # TRAIN.CUTMIX_ALPHA
                "smoothing": 0.0,  # TRAIN.LABEL_SMOOTHING
            },
            "loss": {
                "base": "ce",  # MODEL.LOSS_FUN cross_entropy
                "distillation": "none",
            },
            "optim": {
                "name": "sgd",  # OPTIM.OPTIMIZER
                "momentum": 0.9,  # OPTIM.MOMENTUM, without dampening
                "nesterov": True,  # OPTIM.NESTEROV
                "weight_decay": 5e-5,  # OPTIM.WEIGHT_DECAY, added to the gradient
                "decay_all": True,  # BN.USE_CUSTOM_WEIGHT_DECAY False, and so for biases
                "clip_norm": None,  # none
            },
            "schedule": {
                "kind": "pycls_epoch",  # OPTIM.LR_POLICY cos
                "base_lr": 0.1,  # model zoo: reference rate 0.1 ...
                "scale_by_batch": 128,  # ... x batch / 128: OPTIM.BASE_LR 0.2 at 256, 0.4 at 512
                "warmup_epochs": 5.0,  # OPTIM.WARMUP_EPOCHS
                "warmup_lr": 0.1 * 0.1 * batch_size / 128,  # OPTIM.WARMUP_FACTOR 0.1 x the peak
                "min_lr": 0.0,  # OPTIM.MIN_LR
            },
            "step": {
                "ema_decay": 0.0  # model zoo: none
            },
            "train": {
                "batch_size": batch_size,  # TRAIN.BATCH_SIZE
                "total_epochs": 100.0,  # OPTIM.MAX_EPOCH
            },
            "eval": {
                "crop_ratio": 0.875  # TEST.IM_SIZE: short side to 256, center crop of 224
            },
        }
    )
