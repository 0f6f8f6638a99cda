"""The recipe in words, its warnings and its costs."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import cli, models
from deit_jax.data import arrays
from deit_jax.errors import ConfigError
from deit_jax.recipe import costs, devices, summary
from deit_jax.recipe.checks import recipe_warnings
from deit_jax.recipe.recipe import make_recipe
from deit_jax.teacher import kinds, manifest
from deit_jax.train import schema

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
IMAGENET = {"records": 1_281_167, "num_classes": 1000}


def resolved(spec: str, **overrides):
    texts = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return schema.load(str(CONFIGS / spec), texts)


def make(spec: str, sizes=IMAGENET, **overrides):
    return make_recipe(resolved(spec, **overrides), device_count=8, **sizes)


@pytest.fixture(scope="module")
def published():
    return summary.describe(
        make("deit_distilled.py:ti", teacher__name="regnety_160"), images_per_second=5000
    )


@pytest.mark.parametrize(
    "fact",
    [
        "5,910,800 parameters",
        "1,251 steps; 427,008 distinct images, each 3 times",
        "375,300 steps = 300 epochs",
        "1,024 images per step (128 per device, 8 devices)",
        "0.001 = 0.0005 x 1,024 / 512",
        "1e-06, 0.0002008, 0.0004006, 0.0006004, 0.0008002, 0.0009993",
        "dist_token, */kernel                        52  5,840,064   0.05",
        "scale (0.08, 1), ratio (0.75, 1.333)",
        "2 draws among 15 operations, each applied with probability 0.5, magnitude 9",
        "erasing_prob 0.25, erasing_mode pixel",
        "mixup with probability 0.5 or CutMix with probability 0.5",
        "smoothing 0.1",
        "Cross-entropy with the teacher's argmax",
        "0.5 labels + 0.5 teacher",
        "at 224 pixels",
        "decay 0.99996, an average over 25,000 steps",
        # 3 x 1.261 G and 15.90 G multiply-accumulates (recipes of the paper) x 1,024 images
        "student 3.87 T, teacher 16.3 T multiply-accumulates",
        "21.4 hours at 5,000 images per second",
    ],
)
def test_published_recipe_is_described(published, fact):
    assert fact in published


@pytest.mark.parametrize(
    "overrides, fact",
    [
        ({"optim__name": "lamb"}, "lamb_clip_norm 1"),
        ({"optim__name": "sgd"}, "momentum 0.9, nesterov true"),
        ({"optim__trainable": "attn_only"}, "frozen"),
        ({"schedule__kind": "cosine"}, "1e-06, 0.0002008, 0.0004006"),
        ({}, "1e-06, 1e-06, 0.0002008"),
        ({"augment__mixup": 0}, "                CutMix with probability 1\n"),
        ({"augment__auto_augment": ""}, "saturation in random order, factors 0.7 to 1.3"),
        ({"augment__auto_augment": "original"}, "AutoAugment: one of 25 pairs"),
        ({"input__canvas": 300}, "images longer than 300 pixels are shrunk before the crop"),
        ({"augment__crop": "src"}, "Simple random crop (DeiT-III)"),
        ({"step__train_mode": False}, "no stochastic depth"),
        ({"step__accum_steps": 4}, "in 4 micro-batches"),
    ],
)
def test_options_are_described(overrides, fact):
    assert fact in summary.describe(make("deit.py:ti", model__depth=1, **overrides))


def test_stages_that_are_off_are_not_described():
    off = {"augment__mixup": 0, "augment__cutmix": 0, "augment__erasing_prob": 0}
    lines = summary.describe(make("deit.py:ti", model__depth=1, **off)).splitlines()
    start = lines.index("augmentation") + 1
    stages = [line.split()[0] for line in lines[start:] if line[2:3].strip()]
    assert stages[:4] == ["crop", "color", "normalize", "target"] and "mix" not in stages


def test_published_recipes_have_no_warnings():
    for spec in ("deit.py:b", *(f"deit_distilled.py:{size}" for size in ("ti", "s", "b"))):
        assert recipe_warnings(make(spec)) == []


def test_the_distilled_recipes_of_all_sizes_see_the_same_images():
    """So one set of stored labels serves them all; hard labels also the rows of Table 3."""
    source = arrays.ArraySource(np.zeros((2048, 8, 8, 3), np.uint8), np.zeros(2048), "x")
    found = {}
    for variant in ("ti", "s", "b", "ti_hard", "s_soft", "b_1000"):
        recipe = make(f"deit_distilled.py:{variant}")
        sizes = {"mix_group": recipe.mix_group, "image_size": recipe.image_size}
        found[variant] = manifest.inputs(recipe.config, source=source, **sizes)
    for variant, inputs in found.items():
        assert manifest.differences(found["ti"], inputs) == "", variant
    other = make("deit.py:ti")
    sizes = {"mix_group": other.mix_group, "image_size": other.image_size}
    differ = manifest.differences(
        found["ti"], manifest.inputs(other.config, source=source, **sizes)
    )
    assert differ == "augment.mix_group: 64 there, 256 here"


def test_labels_of_other_images_are_told_without_the_data(tmp_path):
    recipe = make("deit_distilled.py:ti", model__depth=1)
    sizes = {"mix_group": recipe.mix_group, "image_size": recipe.image_size}
    inputs = manifest.options(recipe.config, **sizes) | {"data.digest": "x", "steps_per_epoch": 5}
    about = {"digest": "t", "description": "a teacher"}
    manifest.Manifest(kinds.Hard(1000), inputs, about).write(tmp_path, {})
    labels = {"teacher__labels": str(tmp_path), "model__depth": 1}
    assert not recipe_warnings(make("deit_distilled.py:ti", **labels))
    (warning,) = recipe_warnings(make("deit_distilled.py:ti", seed=3, **labels))
    assert warning.endswith("which will be refused: seed: 0 there, 3 here")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"labels": "there", "record": "here"}, "config.teacher.record needs a live teacher"),
        ({"record": "here", "label_k": 1001}, "config.teacher.label_k must be 1 to 1000"),
        ({"labels": "there", "init": "x"}, "teacher.init .an option of teacher.labels=''."),
        ({"label_k": 5}, "teacher.label_k .an option of teacher.record=DIR."),
    ],
)
def test_labels_that_cannot_be_are_told_before_the_run(options, words):
    with pytest.raises(ConfigError, match=words):
        make("deit_distilled.py:ti", **{f"teacher__{key}": text for key, text in options.items()})


def test_explain_says_what_stored_labels_take_and_save():
    recipe = make("deit_distilled.py:ti", teacher__label_epochs=2)
    text = summary.describe(recipe, images_per_second=20_000)
    steps, batch = 2 * recipe.durations.steps_per_epoch, 1024
    lines = text.split("stored labels\n")[1].split("\n\n")[0]
    assert f"{2 * batch * steps / 1e6:.3g} MB for 2 epochs" in lines
    assert "2,048 bytes per step, 40 kB per second" in lines and "modulo 2" in lines
    teacher = recipe.teacher.model.count().macs
    assert f"{teacher * batch * steps / 1e15:.3g} P multiply" in lines, lines


@pytest.mark.parametrize(
    "spec, overrides, words",
    [
        ("deit.py:b", {"loss__base": "bce"}, "augment.smoothing=0"),
        ("deit.py:b", {"schedule__base_lr": 4e-6}, "floor"),
        ("deit.py:b", {"schedule__base_lr": 1e-3}, "scaled already"),
        ("deit.py:b", {"optim__name": "lamb"}, "not scaled"),
        ("deit.py:b", {"augment__mix_group": 256}, "mix_group_limit=64"),
        ("deit.py:b", {"train__batch_size": 512, "augment__mix_group": 256}, "keeps them apart"),
        ("deit.py:b", {"train__total_epochs": 30}, "step.ema_decay"),
        ("deit.py:b", {"init": "weights.pth"}, "train_mode=False"),
        ("deit.py:b", {"input__canvas": 192}, "input.canvas"),
        ("deit.py:b", {"eval__crop_ratio": 1.0}, "eval.crop_ratio"),
        ("deit_distilled.py:b", {"loss__distillation": "none"}, "class head"),
        (
            "deit_distilled.py:b_soft",
            {"teacher__record": "x", "teacher__label_k": 10},
            "tau=1 alone",
        ),
        ("deit_distilled.py:b", {"loss__distill_on": "class"}, "plain model"),
        (
            "deit.py:b",
            {"train__batch_size": 1023, "augment__mixup": 0, "augment__cutmix": 0},
            "odd",
        ),
    ],
)
def test_each_trap_has_its_warning(spec, overrides, words):
    (warning,) = recipe_warnings(make(spec, model__depth=1, **overrides))
    assert words in warning


def test_weight_average_that_suits_the_run_is_not_warned_about():
    (warning,) = recipe_warnings(make("deit.py:b", train__total_epochs=30))
    suggested = float(warning.split("at most ")[1].split(",")[0])
    assert not recipe_warnings(make("deit.py:b", train__total_epochs=30, step__ema_decay=suggested))


def memory(**overrides):
    """Parts of one device's memory for eight images of a DeiT-Ti of two blocks."""
    options = {"model__depth": 2, "model__dtype": "float32", "train__batch_size": 64}
    return costs.step_memory(make("deit.py:ti", **options | overrides)).parts


def test_memory_of_the_state_is_exact_and_shared_by_fsdp():
    parts = memory()
    # Two of the twelve blocks of 444,864 parameters.
    state = 4 * (5_717_416 - 10 * 444_864)
    assert parts["parameters"] == parts["gradients"] == parts["EMA"] == state
    # Two moments, a step count of the moments and one of the schedule.
    assert parts["optimizer state"] == 2 * state + 8
    # Only big leaves are shared.
    assert memory(mesh__fsdp=4)["optimizer state"] == pytest.approx(state / 2, rel=0.02)
    heads = 8 * (192 * 1000 + 1000)
    assert memory(optim__trainable="heads")["optimizer state"] == pytest.approx(heads, abs=8)
    small = memory(optim__name="sgd", step__ema_decay=0)
    assert "EMA" not in small and small["optimizer state"] == state + 4


def test_activations_follow_type_and_recomputation():
    plain, half, full = (
        memory(**options)["activations"]
        for options in ({}, {"model__dtype": "bfloat16"}, {"model__remat": "full"})
    )
    assert half < 0.7 * plain
    assert full < plain / 10


@pytest.mark.parametrize("options", [{}, {"remat": "dots"}, {"remat": "full"}])
def test_estimate_of_activations_is_what_the_backward_pass_gets(options):
    def saved(depth):
        """Bytes of the residuals of eight rows."""
        model = models.create_model(
            "deit_tiny_patch16_224", image_size=64, depth=depth, attention="xla", **options
        )
        variables = models.abstract_variables(model)
        image = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
        _, residuals = jax.eval_shape(
            lambda v, x: jax.vjp(lambda v: models.apply(model, v, x).logits, v), variables, image
        )
        lengths = {8, 8 * 17}  # rows, or rows x tokens
        rows = (leaf for leaf in jax.tree.leaves(residuals) if lengths & {*leaf.shape[:2]})
        return sum(leaf.size * leaf.dtype.itemsize for leaf in rows), model

    one, _ = saved(1)
    three, model = saved(3)
    assert 8 * model.saved_bytes() == pytest.approx(1.5 * (three - one), rel=0.1)


PLANS = CONFIGS.parent / "benchmarks" / "results" / "programs"


@pytest.mark.parametrize("name", ["deit_ti-v5e-1", "deit_s-h100"])
def test_memory_is_what_the_compiler_plans(name):
    """Of whole models on one device, as `benchmarks/programs.py` compiled them."""
    plan = json.loads((PLANS / f"{name}.json").read_text())
    found = make_recipe(
        schema.load(str(CONFIGS.parent / plan["config"]), plan["overrides"]),
        device_count=1,
        device=devices.find_device(plan["target"].split("-")[0]),
        **IMAGENET,
    )
    ratio = costs.step_memory(found).total / 2**30 / plan["hbm_plan_gib"]
    assert 0.85 < ratio < 1.15, ratio


def test_the_teacher_of_a_run_is_described_before_it_is_loaded(tiny_teacher, tmp_path):
    """Its model is the one in its checkpoint, with which the cost is computed."""
    digits = {"sizes": {"records": 1442, "num_classes": 10}, "train__batch_size": 128}
    found = make("quickstart.py:student", teacher__init=tiny_teacher, **digits)
    assert found.teacher.model.widths == schema_of(tiny_teacher)["widths"]
    text = summary.describe(found)
    assert f"from {tiny_teacher}" in text and "teacher unknown" not in text
    assert "teacher" in costs.step_memory(found).parts
    missing = make("quickstart.py:student", teacher__init=tmp_path / "later", **digits)
    text = summary.describe(missing)
    assert f"unknown: {tmp_path / 'later'} does not exist" in text and "teacher unknown" in text
    assert "teacher" not in costs.step_memory(missing).parts


def schema_of(workdir) -> dict:
    """The model section that a run was trained with."""
    model = json.loads((workdir / "config.json").read_text())["model"]
    return {key: tuple(v) if isinstance(v, list) else v for key, v in model.items()}


def test_convolutional_networks_have_an_estimate_too():
    stage = {"widths": (16,), "depths": (1,), "group_sizes": (8,), "strides": (2,)}
    small, large = (
        models.create_model("regnety_002", num_classes=10, image_size=side, **stage)
        for side in (32, 64)
    )
    ratio = large.saved_bytes() / small.saved_bytes()
    assert ratio == pytest.approx(4, rel=0.1)


def explain(capsys, *arguments):
    status = cli.main(["explain", *arguments])
    return status, capsys.readouterr()


def test_command_explains_a_config_without_its_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    spec = f"--config={CONFIGS / 'deit.py'}:ti"
    spec = [spec, "--config.model.depth=1"]
    status, told = explain(capsys, *spec, "--config.loss.base=bce", "--devices=8")
    assert status == 0
    assert "1,251 steps" in told.out and "augment.smoothing=0" in told.out
    assert "not prepared here" in told.out
    status, told = explain(capsys, *spec, "--records=5120", "--classes=10")
    assert status == 0 and "5 steps; 1,707 distinct images" in told.out


def test_command_explains_models_and_refuses_mistakes(capsys):
    status, told = explain(capsys, "deit_tiny_patch16_224")
    assert status == 0 and "5,717,416 parameters" in told.out
    spec = f"--config={CONFIGS / 'deit.py'}:ti"
    for arguments, words in (
        ([spec, "--config.loss.bas=bce"], "loss.base"),
        ([spec, "deit_tiny_patch16_224"], "not both"),
        (["--config.loss.base=bce"], "needs --config"),
    ):
        status, told = explain(capsys, *arguments)
        assert status == 2 and words in told.err
