"""Each shipped recipe, resolved, against the tables of its paper."""

import pytest
import regnet_recipe
import tiny_runs
from jax import numpy as jnp

from deit_jax import config as config_lib
from deit_jax.optim import schedules

# Table 9 of arXiv 2012.12877, DeiT-B's column, and the official command line where it is silent.
TABLE_9 = {
    "train.total_epochs": 300.0,
    "train.batch_size": 1024,
    "optim.name": "adamw",
    "optim.beta1": 0.9,
    "optim.beta2": 0.999,
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.05,
    "optim.decay_dist_token": True,
    "optim.clip_norm": None,
    "schedule.kind": "timm_epoch",  # the official loop steps after the epoch, with its number
    "schedule.base_lr": 5e-4,
    "schedule.scale_by_batch": 512,
    "schedule.warmup_epochs": 5.0,
    "schedule.warmup_lr": 1e-6,
    "schedule.min_lr": 1e-5,
    "schedule.warmup_prefix": False,
    "augment.crop": "rrc",
    "augment.scale": (0.08, 1.0),
    "augment.auto_augment": "rand-m9-mstd0.5-inc1",
    "augment.smoothing": 0.1,
    "augment.mixup": 0.8,
    "augment.cutmix": 1.0,
    "augment.mix_prob": 1.0,
    "augment.switch_prob": 0.5,
    "augment.erasing_prob": 0.25,
    "augment.mix_group_limit": 64,  # images per GPU: the official launcher's default
    "model.drop_path_rate": 0.1,
    "model.dropout_rate": 0.0,
    "model.image_size": 224,
    "input.repeats": 3,
    "step.ema_decay": 0.99996,
    "step.train_mode": True,
    "eval.crop_ratio": 0.875,
    "loss.base": "ce",
    "loss.label_on": "class",
    "loss.distillation": "none",
    "data.name": "imagenet2012",
}
HARD = {
    "loss.distillation": "hard",
    "loss.distill_on": "token",
    "loss.alpha": 0.5,
    "teacher.name": "regnety_160",
}
SOFT = {
    "loss.distillation": "soft",
    "loss.distill_on": "class",
    "loss.alpha": 0.1,
    "loss.tau": 3.0,
    "loss.reduction": "numel",
    "teacher.name": "regnety_160",
}
ADAM = ("optim.beta1", "optim.beta2", "optim.eps")
SIZES = {"ti": "tiny", "s": "small", "b": "base"}

# Section 2.7 of the official instructions for fine-tuning at 384.
FINETUNING = {
    "train.batch_size": 512,
    "train.total_epochs": 30.0,
    "optim.weight_decay": 1e-8,
    "schedule.base_lr": 5e-6,
    "schedule.min_lr": 5e-6,
    "step.train_mode": False,
    "step.ema_decay": 0.0,
    "augment.mix_group_limit": 32,
}

# Issues 45, 105 of the official code; 81, 144 of facebookresearch/dino.
SGD_TASK = {
    "train.total_epochs": 1000.0,
    "optim.name": "sgd",
    "optim.weight_decay": 1e-4,
    "schedule.base_lr": 0.01,
    "augment.erasing_prob": 0.0,
    "model.drop_path_rate": 0.0,
}
ADAMW_TASK = {"train.total_epochs": 1000.0, "schedule.base_lr": 7.5e-6}
INAT_TASK = {"train.total_epochs": 360.0, "schedule.base_lr": 7.5e-5, "augment.erasing_prob": 0.1}
TASK = {
    "train.batch_size": 768,
    "schedule.scale_by_batch": None,
    "step.ema_decay": 0.0,
    "init_drop_head": True,
}
TASKS = {
    "cifar10": SGD_TASK | {"data.name": "cifar10"},
    "cifar10_adamw": ADAMW_TASK | {"data.name": "cifar10"},
    "cifar100": ADAMW_TASK | {"data.name": "cifar100", "schedule.base_lr": 5e-6},
    "flowers": SGD_TASK
    | {"data.name": "oxford_flowers102", "data.train_split": "train+validation"},
    "cars": SGD_TASK | {"data.name": None, "data.source": "folder"},
    "inat18": INAT_TASK | {"data.name": "i_naturalist2018"},
    "inat19": INAT_TASK | {"data.name": None, "data.source": "folder"},
}

# Table 8 of arXiv 2012.12877.
ABLATIONS = {
    "none": {},
    "sgd": {"optim.name": "sgd"},
    "sgd_finetune": FINETUNING | {"optim.name": "sgd", "model.image_size": 384},
    "no_randaugment": {"augment.auto_augment": "", "augment.color_jitter": 0.3},
    "auto_augment": {"augment.auto_augment": "original"},
    "no_mixup": {"augment.mixup": 0.0},
    "no_cutmix": {"augment.cutmix": 0.0},
    "no_mix": {"augment.mixup": 0.0, "augment.cutmix": 0.0},
    "no_erasing": {"augment.erasing_prob": 0.0},
    "no_drop_path": {"model.drop_path_rate": 0.0},
    "no_repeats": {"input.repeats": 1},
    "dropout": {"model.dropout_rate": 0.1},
    "ema": {"checkpoint.best_metric": "eval_ema/class/top1"},
}

# README_revenge.md of the official code; Table 1 of arXiv 2204.07118.
DEIT3 = {
    "schedule.scale_by_batch": None,
    "augment.erasing_prob": 0.0,
    "eval.crop_ratio": 1.0,
    "model.drop_path_schedule": "constant",
    "model.layer_scale_init": 1e-4,
}
THREE_AUGMENT = {
    "augment.three_augment": True,
    "augment.auto_augment": "",
    "augment.color_jitter": 0.3,
}
DEIT3_STAGES = {
    "": THREE_AUGMENT
    | {
        "train.batch_size": 2048,
        "train.total_epochs": 800.0,
        "optim.name": "lamb",
        "optim.lamb_clip_norm": 1.0,
        "schedule.base_lr": 3e-3,
        "loss.base": "bce",
        "augment.smoothing": 0.0,
    },
    "ft": {
        "train.batch_size": 512,
        "train.total_epochs": 20.0,
        "optim.weight_decay": 0.1,
        "schedule.base_lr": 1e-5,
        "input.repeats": 1,
        "step.ema_decay": 0.0,
    },
    "21k": THREE_AUGMENT
    | {
        "train.batch_size": 2048,
        "train.total_epochs": 240.0,
        "optim.name": "lamb",
        "optim.weight_decay": 0.02,
        "schedule.base_lr": 1e-3,
        "augment.crop": "src",
        "augment.scale": None,  # no option of this crop
        "augment.mixup": 0.0,
        "input.repeats": 1,
    },
}
PER_GPU = {n: {"augment.mix_group_limit": n} for n in (16, 32, 128, 256)}  # the command's --batch
DEIT3_SIZES = {
    "s": {"model.image_size": 224, "model.drop_path_rate": 0.05, "schedule.base_lr": 4e-3}
    | PER_GPU[256],
    "b": {"model.image_size": 192, "model.drop_path_rate": 0.2} | PER_GPU[256],
    "l": {"model.image_size": 192, "model.drop_path_rate": 0.45},
    "h": {"model.image_size": 154, "model.drop_path_rate": 0.6},
    "b_ft224": {"model.drop_path_rate": 0.2},
    "l_ft224": {"model.drop_path_rate": 0.45},
    "h_ft224": {"model.drop_path_rate": 0.55} | PER_GPU[32],
    "s_ft384": {"model.image_size": 384, "model.drop_path_rate": 0.0},
    "b_ft384": {"model.image_size": 384, "model.drop_path_rate": 0.15} | PER_GPU[32],
    "l_ft384": {"model.image_size": 384, "model.drop_path_rate": 0.4} | PER_GPU[16],
    "s_21k": {"model.drop_path_rate": 0.05} | PER_GPU[128],
    "b_21k": {"model.drop_path_rate": 0.1},
    "l_21k": {"model.drop_path_rate": 0.3},
    "h_21k": {"model.image_size": 126, "model.drop_path_rate": 0.5, "train.total_epochs": 90.0},
    "s_21k_1k": {"model.drop_path_rate": 0.05} | PER_GPU[128],
    "b_21k_1k": {"model.drop_path_rate": 0.15},
    "l_21k_1k": {"model.drop_path_rate": 0.4},
    "h_21k_1k": {"model.drop_path_rate": 0.45},
}
DEIT3_NAMES = {"s": "small_patch16", "b": "base_patch16", "l": "large_patch16", "h": "huge_patch14"}
FROM_21K = {
    "train.total_epochs": 50.0,
    "schedule.base_lr": 3e-4,
    "step.ema_decay": 0.0,
    "init_drop_head": True,
}


def deit3(variant: str) -> dict:
    size, _, stage = variant.partition("_")
    kind = "ft" if stage.startswith("ft") else stage[:3]
    facts = TABLE_9 | DEIT3 | DEIT3_STAGES[kind]
    if stage.startswith("21k"):
        facts |= FROM_21K if stage == "21k_1k" else {"data.name": None, "data.source": "folder"}
    side = 384 if stage == "ft384" else 224
    name = f"deit3_{DEIT3_NAMES[size]}_{side}"
    return facts | {"model.name": name} | DEIT3_SIZES[variant]


def beside_table_9(facts: dict) -> dict:
    """Table 9 with what differs; SGD has a momentum instead of Adam's options."""
    facts = TABLE_9 | facts
    if facts["optim.name"] == "sgd":
        facts = {key: facts[key] for key in facts if key not in ADAM}
        facts |= {"optim.momentum": 0.9, "optim.nesterov": True}
    return facts


def expected() -> dict[str, dict]:
    """`file.py:variant` -> what its paper says of it."""
    plain, distilled = (
        {size: {"model.name": f"deit_{name}_{kind}patch16_224"} for size, name in SIZES.items()}
        for kind in ("", "distilled_")
    )
    found = {}
    for size in SIZES:
        # Ti and S ran on 4 processes of 256 images, B, and what has a teacher, on 16 of 64.
        taught = plain[size] | {"augment.mix_group_limit": 64}
        plain[size] |= {"augment.mix_group_limit": 64 if size == "b" else 256}
        distilled[size] |= {"augment.mix_group_limit": 64}
        found |= {
            f"deit.py:{size}": plain[size],
            f"deit_distilled.py:{size}_none": plain[size],
            f"deit_distilled.py:{size}_soft": taught | SOFT,
            f"deit_distilled.py:{size}_hard": taught | HARD | {"loss.distill_on": "class"},
            f"deit_distilled.py:{size}": distilled[size] | HARD,
            f"deit_distilled.py:{size}_1000": distilled[size]
            | HARD
            | {"train.total_epochs": 1000.0},
            f"mmpretrain.py:{size}": plain[size]
            | {
                "input.repeats": 1,
                "optim.clip_norm": 5.0,
                "schedule.kind": "cosine",
                "schedule.by_epoch": True,
                "schedule.warmup_epochs": 20.0,
                "schedule.warmup_prefix": True,
                "model.drop_path_rate": 0.1 if size == "b" else 0.0,
                "step.ema_decay": 0.99996 if size == "b" else 0.0,
            },
        }
    for teacher in ("regnety_040", "regnety_080", "regnety_120", "regnety_160"):
        found[f"teachers.py:{teacher}"] = {"model.name": teacher}
        student = distilled["b"] | HARD | {"teacher.name": teacher}
        found[f"teachers.py:b_from_{teacher}"] = student
    student = distilled["b"] | HARD | {"teacher.name": "deit_base_patch16_224"}
    found["teachers.py:b_from_deit_b"] = student
    for side in (160, 224, 320, 384):
        found[f"finetune.py:{side}"] = FINETUNING | {"model.image_size": side}
    at_384 = FINETUNING | {"model.name": "deit_base_distilled_patch16_384", "model.image_size": 384}
    found["finetune.py:384_distilled"] = at_384 | HARD | {"teacher.input_size": 384}
    found["finetune.py:384_distilled_labels"] = at_384 | {"loss.label_on": "mean"}
    for task, facts in TASKS.items():
        found[f"transfer.py:{task}"] = TASK | facts | plain["b"]
        found[f"transfer.py:{task}_distilled"] = TASK | facts | distilled["b"] | HARD
    found |= {f"ablations.py:{row}": facts for row, facts in ABLATIONS.items()}
    found |= {f"deit3.py:{variant}": deit3(variant) for variant in DEIT3_SIZES}
    found = {spec: beside_table_9(facts) for spec, facts in found.items()}
    return found | regnet_recipe.EXPECTED


EXPECTED = expected()


@pytest.mark.parametrize("spec", EXPECTED)
def test_resolved_recipe_is_the_published_one(spec):
    config = tiny_runs.load(spec)
    resolved = config_lib.flatten(config)
    facts = EXPECTED[spec]
    # RegNets have no dropout; folders have no name.
    assert {k for k in facts.keys() - resolved if facts[k] is not None} <= {"model.dropout_rate"}
    assert not {k: resolved[k] for k in facts if resolved.get(k, facts[k]) != facts[k]}


def test_every_variant_of_these_files_is_compared():
    for file in "deit deit_distilled teachers transfer ablations deit3 mmpretrain".split():
        module = {}
        source = (tiny_runs.ROOT / "configs" / f"{file}.py").read_text()
        exec(compile(source, file, "exec"), module)
        missing = {f"{file}.py:{name}" for name in module["VARIANTS"]} - set(EXPECTED)
        assert not missing


def test_a_teacher_is_named_where_one_is_learnt_from():
    """A teacher's name without a distillation, or the other way round, would be silent."""
    for spec in EXPECTED:
        config = tiny_runs.load(spec)
        assert bool(config.teacher.name) == (config.loss.distillation != "none"), spec


def test_own_photos_are_the_default_and_a_new_head_learns():
    config = tiny_runs.load("finetune.py", "data.source=folder", "data.path=photos")
    assert config.model.name == "deit_small_patch16_224"
    options = dict(config.schedule) | {"batch_size": config.train.batch_size}
    rate = schedules.make_schedule(**options, steps_per_epoch=10, total_steps=300)
    # The authors' rate for new heads, and not a share of it, from the end of the warm-up.
    assert float(rate(10)) == pytest.approx(7.5e-5, rel=0.01)
    assert float(rate(300)) < 2e-6


def test_published_fine_tuning_is_constant_after_its_warm_up():
    config = tiny_runs.load("finetune.py:384")
    options = dict(config.schedule) | {"batch_size": 512}
    rate = schedules.make_schedule(**options, steps_per_epoch=10, total_steps=300)
    assert float(rate(0)) == pytest.approx(1e-6)
    assert float(rate(59)) == pytest.approx(1e-6 + 4e-6 * 4 / 5)  # epoch 5 has epoch 4's rate
    assert jnp.allclose(rate(jnp.arange(60, 300)), 5e-6)


def test_cosine_after_the_warm_up_starts_at_the_peak():
    """MMPretrain: 20 epochs up from a thousandth of the peak, 280 down to 1e-5."""
    options = dict(tiny_runs.load("mmpretrain.py:ti").schedule) | {"batch_size": 1024}
    rate = schedules.make_schedule(**options, steps_per_epoch=100, total_steps=30_000)
    assert float(rate(0)) == pytest.approx(1e-6)
    assert float(rate(2_000)) == pytest.approx(1e-3)
    assert float(rate(2_000 + 14_000)) == pytest.approx((1e-3 + 1e-5) / 2)
    assert float(rate(30_000)) == pytest.approx(1e-5)
