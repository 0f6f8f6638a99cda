"""The recipe of RegNetY's authors, as `recipes_test.py` and `regnet_recipe_test.py` hold it."""

import pytest

# configs/dds_baselines/regnety of facebookresearch/pycls, over pycls.core.config.
DDS = {
    "train.total_epochs": 100.0,
    "train.batch_size": 512,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.nesterov": True,
    "optim.weight_decay": 5e-5,
    "optim.decay_all": True,
    "optim.clip_norm": None,
    "schedule.kind": "pycls_epoch",
    "schedule.base_lr": 0.1,
    "schedule.scale_by_batch": 128,
    "schedule.warmup_epochs": 5.0,
    "schedule.warmup_lr": pytest.approx(0.04),
    "schedule.min_lr": 0.0,
    "augment.crop": "rrc",
    "augment.scale": (0.08, 1.0),
    "augment.hflip": 0.5,
    "augment.auto_augment": "",
    "augment.color_jitter": 0.0,
    "augment.pca_std": 0.1,
    "augment.smoothing": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "augment.erasing_prob": 0.0,
    "model.drop_path_rate": 0.0,
    "model.dtype": "float32",
    "model.image_size": 224,
    "input.repeats": 1,
    "step.ema_decay": 0.0,
    "eval.crop_ratio": 0.875,
    "loss.base": "ce",
    "loss.distillation": "none",
    "data.name": "imagenet2012",
}
DDS_16 = DDS | {"train.batch_size": 256, "schedule.warmup_lr": pytest.approx(0.02)}
EXPECTED = {
    f"teachers.py:{name}_dds": facts | {"model.name": name}
    for name, facts in {
        "regnety_040": DDS,
        "regnety_080": DDS,
        "regnety_120": DDS,
        "regnety_160": DDS_16,
    }.items()
}
