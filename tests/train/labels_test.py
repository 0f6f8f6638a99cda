"""A step with stored labels is the step with a live teacher, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax import augment, losses, models, rng
from deit_jax.distributed import sharding
from deit_jax.teacher import PREFIX, kinds
from deit_jax.train import answers
from deit_jax.train import step as step_lib

BATCH, SIDE, CLASSES, PERIOD = 16, 16, 10, 3
# name -> (options of the loss, what the loss uses, what is stored)
FORMS = {
    "hard": ({"distillation": "hard"}, kinds.Hard(CLASSES), kinds.Hard(CLASSES)),
    "hard of soft": ({"distillation": "hard"}, kinds.Hard(CLASSES), kinds.Soft(CLASSES, 2)),
    "soft": ({"distillation": "soft"}, None, kinds.Soft(CLASSES, CLASSES)),
}
WEIGHTS = {"kernel": jnp.asarray(np.random.RandomState(3).randn(48, CLASSES), jnp.float32)}


def host_batch(step=0):
    draw, count = np.random.RandomState(step), BATCH // 2
    return {
        "canvas": draw.randint(0, 256, (count, 24, 24, 3)).astype(np.uint8),
        "size": draw.randint(8, 25, (count, 2)).astype(np.int32),
        "label": draw.randint(0, CLASSES, count).astype(np.int32),
        "canvas_index": np.arange(BATCH, dtype=np.int32) // 2,
    }


# All of it but RandAugment, which takes long to compile; what it returns are integers.
augment_fn = augment.make_augment(
    augment.Supplied(image_size=SIDE, num_classes=CLASSES, batch_size=BATCH, repeats=2),
    auto_augment="",
    color_jitter=0.0,
    erasing_prob=0.5,
    mix_group=8,
)


def teacher_fn(variables, image):
    patches = image.reshape(len(image), 4, 4, 4, 4, 3).mean((2, 4)).reshape(len(image), 48)
    return jnp.tanh(patches @ variables["kernel"]) * 5


def make(form, *, live, accum_steps=1, period=PERIOD):
    loss, used, kind = FORMS[form]
    model = models.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=CLASSES,
        image_size=SIDE,
        patch_size=8,
        embed_dim=16,
        depth=1,
        num_heads=2,
        drop_path_rate=0.2,
    )
    tx = optax.adamw(1e-2)
    labels = answers.Labels(used, None if live else kind, kind.encode if live else None, period)
    step = step_lib.make_train_step(
        model,
        augment_fn,
        losses.make_loss(**loss),
        tx,
        lambda step: jnp.float32(1e-2),
        rng.base_key(0),
        teacher_fn if live else None,
        1,
        labels,
        accum_steps=accum_steps,
        ema_decay=0.9,
    )
    state = step_lib.init_state(model, tx, jax.random.key(1), ema=True)
    return jax.jit(step), state, labels


def stored_entries(rows):
    return {PREFIX + name: np.asarray(value) for name, value in rows.items()}


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.long
@pytest.mark.parametrize("form, accum_steps", [("hard", 1), ("hard of soft", 4), ("soft", 1)])
def test_stored_labels_give_the_bits_of_the_live_teacher(form, accum_steps, optimized):
    """Also where the labels are those of an earlier epoch, with other stochastic depth."""
    live, state, _ = make(form, live=True, accum_steps=accum_steps)
    replay, other, _ = make(form, live=False, accum_steps=accum_steps)
    recorded = []
    for step in range(PERIOD + 2):
        batch = host_batch(step % PERIOD)
        state, metrics = live(state, WEIGHTS, batch)
        recorded.append(metrics.pop("labels"))
        other, found = replay(other, None, batch | stored_entries(recorded[step % PERIOD]))
        assert_same_bits(metrics, found)
    assert_same_bits(state, other)
    assert_same_bits(recorded[0], recorded[PERIOD])
    rows = recorded[0].values(), recorded[1].values()
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(*rows, strict=True))


def test_labels_made_without_a_student_are_those_of_the_run(optimized):
    live, state, labels = make("soft", live=True)
    alone = jax.jit(answers.make_label_step(augment_fn, rng.base_key(0), teacher_fn, labels))
    for step in range(3):
        state, metrics = live(state, WEIGHTS, host_batch(step))
        assert_same_bits(metrics["labels"], alone(np.int32(step), WEIGHTS, host_batch(step)))


@pytest.mark.long
def test_eight_devices_read_what_one_recorded():
    live, state, _ = make("hard", live=True)
    replay, other, _ = make("hard", live=False)
    mesh = sharding.make_mesh()
    rows = sharding.batch_sharding(mesh)
    replay = jax.jit(sharding.on_rows(replay, rows))
    spread = jax.device_put(other, sharding.replicated(mesh))
    for step in range(2):
        state, metrics = live(state, WEIGHTS, host_batch(step))
        batch = host_batch(step) | stored_entries(metrics.pop("labels"))
        spread, found = replay(spread, None, sharding.to_global(rows, batch))
        for name, value in metrics.items():
            np.testing.assert_allclose(value, found[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_program_with_stored_labels_has_no_teacher():
    """Its only products of 48 by 10 are the teacher's."""
    for live in (True, False):
        step, state, _ = make("hard", live=live)
        row = {"choice": np.zeros(BATCH, np.uint16)}
        batch = host_batch() | ({} if live else stored_entries(row))
        text = step.lower(state, WEIGHTS if live else None, batch).as_text()
        assert ("tensor<48x10xf32>" in text) == live
