"""Fine-tuning: on your own photos, and at other resolutions as in the paper.

Your own photos, from any checkpoint (variants s, the default, ti, b at 224, b384):

    python train.py --config=configs/finetune.py --workdir=runs/mine \
        --config.data.source=folder --config.data.path=PHOTOS \
        --config.init=deit_small_patch16_224-cd65a155.pth --config.init_drop_head=true

PHOTOS holds <class>/*.jpg, of which a fifth validates, or train/<class>/*.jpg and
val/<class>/*.jpg, or is a .zip of either; the names of the classes are kept in the checkpoint.
Without `config.init` the model starts from random weights, which needs far more photos.
With a teacher trained on the same classes: --config.model.name=
deit_small_distilled_patch16_224 --config.loss.distillation=hard --config.teacher.init=RUN.
With fewer photos than a batch (32) the batch is lowered.
The recipe is the authors' for new heads (iNaturalist, issue 105 of the official code:
AdamW, peak 7.5e-5, weight decay .05, erasing .1) without repeats and for 30 epochs. The
peak is not scaled by the batch: so small a batch goes with so few photos that 5e-6 x 32 /
512, the rate at which the paper adapts heads that exist already, would leave a new head
where it started. The cosine moves every step, not once an epoch as in the published runs.
One GPU is enough; minutes for a thousand photos.

DeiT-B at another resolution on ImageNet (arXiv 2012.12877, sections 3 and 6):

    python train.py --config=configs/finetune.py:384_distilled --workdir=runs/b384_distilled \
        --config.data.data_dir=DIR --config.init=runs/deit_b_distilled \
        --config.teacher.init=regnety_160-a5fe301d.pth

    variant              start                  published top-1 / ReaL / V2 at its resolution
    384                  configs/deit.py:b      83.1 / 87.7 / 72.4  (Tables 5 and 10)
    320, 224, 160        configs/deit.py:b      82.7/87.2/71.9, 81.8/86.7/71.5, 79.9/84.8/67.6
    384_distilled        deit_distilled.py:b    84.5 / 89.0 / 74.8; of b_1000 85.2 / 89.3 / 75.2
    384_distilled_labels deit_distilled.py:b    "lower" than with the teacher, no number

Batch 512 (16 GPUs of 32, which share a mix), AdamW, 5e-6 constant after five epochs of
warm-up, weight decay 1e-8, no stochastic depth, everything else as in training, the official
loop's learning rate included; 30 epochs, the official command for 384 (the paper's text says
25, and 20 hours on 8 V100). The teacher sees the student's 384 pixels, as in
the paper; --config.teacher.input_size=224 shows it its own. `labels` has no teacher and
trains the mean of both heads on the labels, which is what the official code does, for it
refuses a teacher here. The 384 columns of Tables 2, 3 and 8 start from other runs.
"""

from ml_collections import ConfigDict

from configs import common, deit

OWN_PHOTOS = {
    "s": "deit_small_patch16_224",
    "ti": "deit_tiny_patch16_224",
    "b": "deit_base_patch16_224",
    "b384": "deit_base_patch16_384",
}
RESOLUTIONS = ("384", "320", "224", "160")
VARIANTS = (*OWN_PHOTOS, *RESOLUTIONS, "384_distilled", "384_distilled_labels")
MODES = common.MODES


def get_config(variant: str) -> ConfigDict:
    if variant in OWN_PHOTOS:
        return _own_photos(OWN_PHOTOS[variant])
    resolution, _, kind = variant.partition("_")
    return _published(int(resolution), kind)


def _own_photos(model: str) -> ConfigDict:
    finetuning = ConfigDict(
        {
            "model": {"name": model},
            "data": {"source": "folder"},
            "input": {"repeats": 1},
            "augment": {"erasing_prob": 0.1},
            "schedule": {
                "kind": "cosine",
                "base_lr": 7.5e-5,
                "scale_by_batch": None,
                "min_lr": 1e-6,
                "warmup_epochs": 1.0,
            },
            "step": {"ema_decay": 0.0},
            "train": {"batch_size": 32, "total_epochs": 30.0, "eval_every_epochs": 1.0},
            "eval": {"batch_size": 64},
        }
    )
    return common.merged(deit.table_9(), finetuning)


def _published(resolution: int, kind: str) -> ConfigDict:
    name = (
        f"deit_base_{'distilled_' if kind else ''}patch16_{'384' if resolution == 384 else '224'}"
    )
    finetuning = ConfigDict(
        {
            "model": {"name": name, "image_size": resolution},
            "augment": {"mix_group_limit": 32},  # images per GPU of the official command
            "optim": {"weight_decay": 1e-8},
            "schedule": {"base_lr": 5e-6, "min_lr": 5e-6},
            # Evaluation mode: no stochastic depth. No published number is of averaged weights;
            # "+ EMA" gains nothing at 384 (Table 8).
            "step": {"train_mode": False, "ema_decay": 0.0},
            "train": {"batch_size": 512, "total_epochs": 30.0, "eval_every_epochs": 5.0},
        }
    )
    parts = [deit.imagenet(), deit.table_9(), finetuning]
    if kind == "distilled":
        teacher = ConfigDict({"teacher": {"input_size": resolution}})
        parts += [deit.token_distillation("regnety_160"), teacher]
    elif kind == "distilled_labels":
        parts.append(ConfigDict({"loss": {"label_on": "mean"}}))
    return common.merged(*parts)
