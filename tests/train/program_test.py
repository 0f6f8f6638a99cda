"""The lowered program of a whole training step: its FLOPs, and the precision of its products."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
import tiny_runs

from deit_jax import losses, models, optim, rng
from deit_jax.recipe import hardware
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import step as step_lib

ROWS = 64


def lower_step(model, augment_fn, batch, *, teacher=None, **loss):
    """The training step of `model` as it would be compiled, nothing of it computed."""
    shapes = lambda m: models.abstract_variables(m)
    schedule = lambda step: jnp.float32(1e-3)
    tx = optim.make_optimizer(shapes(model)["params"], schedule)
    step = step_lib.make_train_step(
        model,
        augment_fn,
        losses.make_loss(**loss),
        tx,
        schedule,
        rng.base_key(0),
        teacher and (lambda v, image: models.apply(teacher, v, image).logits),
        ema_decay=0.9,
    )
    state = jax.eval_shape(lambda: step_lib.init_state(model, tx, jax.random.key(0), ema=True))
    return jax.jit(step).lower(state, teacher and shapes(teacher), batch)


@functools.cache
def flops_of(name, teacher=None):
    """(FLOPs that XLA counts, FLOPs of the formula) of a model of two blocks, real widths."""
    model = models.create_model(name, dtype="bfloat16", depth=2)
    teacher = teacher and models.create_model(teacher, dtype="bfloat16", depth=2)

    def augment_fn(key, batch):
        return batch | {"target": jax.nn.one_hot(batch["label"], 1000)}

    batch = {
        "image": jax.ShapeDtypeStruct((ROWS, *model.image_size, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((ROWS,), jnp.int32),
    }
    loss = {"distillation": "hard", "distill_on": "class"} if teacher else {}
    lowered = lower_step(model, augment_fn, batch, teacher=teacher, **loss)
    counted = lowered.cost_analysis()["flops"]
    return counted, hardware.step_flops(model, batch_size=ROWS, teacher=teacher)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_flops_are_those_of_the_formula(size):
    counted, formula = flops_of(f"deit_{size}_patch16_224")
    assert counted == pytest.approx(formula, rel=0.03)


def test_a_teacher_counts_as_one_forward_pass():
    name = "deit_tiny_patch16_224"
    with_teacher = flops_of(name, "deit_base_patch16_224")
    alone = flops_of(name)
    counted, formula = (a - b for a, b in zip(with_teacher, alone, strict=True))
    assert counted == pytest.approx(formula, rel=0.03)


# Products with an f32 operand that are meant: name of the layer or function -> why.
IN_FLOAT32 = {
    "_weighted_levels": "crop weights, which must round to the levels that Pillow gives",
    "head": "logits and the loss are in f32; one token of each image",
    "head_dist": "the same",
}


def products(text):
    """(operand dtypes, names) of every dot_general and convolution in a lowered program's text."""
    places = dict(re.findall(r"^(#loc\d+) = loc\((.*)\)$", text, re.M))

    def names(place):
        location = places.get(place, place)
        strings = re.findall(r'"([^"]*)"', location)
        return strings + [
            name for inner in re.findall(r"#loc\d+", location) for name in names(inner)
        ]

    pattern = re.compile(
        r"stablehlo\.(?:dot_general|convolution)\b.* : "
        r"\(tensor<([^>]*)>, tensor<([^>]*)>\) -> \S+ loc\((#loc\d+)\)"
    )
    for left, right, place in pattern.findall(text):
        yield {shape.split("x")[-1] for shape in (left, right)}, names(place)


def exception_of(names):
    """The key of IN_FLOAT32 that a product falls under."""
    path = names[0].split("/")
    for key in IN_FLOAT32:
        if key in path or key in names:
            return key
    return None


def test_products_of_a_distilled_bf16_step_are_in_bf16():
    """DeiT's whole recipe: augmentation, convnet teacher, student, both losses, AdamW, EMA."""
    experiment = experiment_lib.build(
        tiny_runs.tiny(
            "deit.py:ti",
            *tiny_runs.DIGITS,
            "model.name=deit_tiny_distilled_patch16_224",
            "model.dtype=bfloat16",
            "augment.mean=0.3,0.3,0.3",
        )
    )
    teacher = models.create_model(
        "regnety_002",
        num_classes=10,
        dtype="bfloat16",
        image_size=32,
        widths=(8, 16),
        depths=(1, 1),
        group_sizes=(4, 4),
        strides=(2, 2),
    )
    with experiment.train_batches() as batches:
        batch = next(batches)
    lowered = lower_step(
        experiment.recipe.model, experiment.augment_fn, batch, teacher=teacher, distillation="hard"
    )
    in_program = list(products(lowered.as_text(debug_info=True)))
    text = lowered.as_text()
    assert len(in_program) == len(re.findall(r"= stablehlo\.(?:dot_general|convolution)\b", text))
    in_f32 = [names for dtypes, names in in_program if "f32" in dtypes]
    assert [names[0] for names in in_f32 if exception_of(names) is None] == []
    assert {exception_of(names) for names in in_f32} == set(IN_FLOAT32), "all are still needed"
    for part in ("RegNet/s2_b1/conv2", "attn/qkv", "mlp/fc2", "patch_embed"):
        of_part = [dtypes for dtypes, names in in_program if part in names[0]]
        assert of_part and all(dtypes == {"bf16"} for dtypes in of_part), part
