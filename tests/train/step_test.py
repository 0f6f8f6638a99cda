"""The training step: accumulation, averages, teacher, non-finite batches, device counts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax import losses, models, optim, rng, sharding
from deit_jax.train import step as step_lib
from deit_jax.train_state import TrainState

CLASSES, ROWS, SIDE = 5, 16, 16


def tiny(distilled=True, **kwargs):
    kwargs = {"drop_path_rate": 0.3} | kwargs
    return models.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=CLASSES,
        image_size=SIDE,
        patch_size=8,
        embed_dim=8,
        depth=1,
        num_heads=2,
        distilled=distilled,
        **kwargs,
    )


def host_batch(seed=0, rows=ROWS):
    r = np.random.RandomState(seed)
    return {
        "canvas": r.randint(0, 256, (rows, 24, 24, 3)).astype(np.uint8),
        "size": np.full((rows, 2), 24, np.int32),
        "label": r.randint(0, CLASSES, rows).astype(np.int32),
        "index": np.arange(rows, dtype=np.int32),
    }


def noisy(key, batch):
    """Stands for the augmentation: it draws, and it is cheap to compile."""
    noise = jax.random.normal(key, (len(batch["label"]), SIDE, SIDE, 3))
    image = batch["canvas"][:, :SIDE, :SIDE].astype(jnp.float32) / 128 - 1 + noise / 10
    return {
        "image": image,
        "target": jax.nn.one_hot(batch["label"], CLASSES),
        "label": batch["label"],
    }


def make(model=None, *, loss=None, schedule=lambda step: jnp.float32(0.1), **kwargs):
    model = model or tiny()
    tx = optax.sgd(0.1)
    step = step_lib.make_train_step(
        model=model,
        augment_fn=noisy,
        loss_fn=losses.make_loss(**(loss or {})),
        tx=tx,
        schedule=schedule,
        base_key=rng.base_key(0),
        **kwargs,
    )
    state = step_lib.init_state(model, tx, jax.random.key(1), ema=bool(kwargs.get("ema_decay")))
    return jax.jit(step), state


def random_teacher(variables, image):
    return jnp.tanh(image.mean((1, 2)) @ variables["kernel"]) * 5


TEACHER = {"kernel": jnp.asarray(np.random.RandomState(3).randn(3, CLASSES), jnp.float32)}


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("loss", [{}, {"distillation": "hard"}, {"distillation": "soft"}])
def test_accumulated_parts_equal_the_whole_batch(loss):
    teacher = random_teacher if loss else None
    whole, state = make(loss=loss, teacher_fn=teacher)
    parts, _ = make(loss=loss, teacher_fn=teacher, accum_steps=4)
    a, metrics_a = whole(state, TEACHER, host_batch())
    b, metrics_b = parts(state, TEACHER, host_batch())
    assert_trees_close(a.params, b.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(metrics_a, metrics_b, rtol=1e-5, atol=1e-6)


def test_draws_depend_on_the_step_and_nothing_else():
    step, state = make()
    one, _ = step(state, None, host_batch())
    again, _ = step(state, None, host_batch())
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, again)))
    _, first = step(state, None, host_batch())
    later = jax.tree.map(lambda x: x, one)
    _, second = step(
        type(state)(later.step, state.params, {}, None, None, state.opt_state), None, host_batch()
    )
    assert first["loss"] != second["loss"]


def test_average_moves_by_its_decay():
    step, state = make(ema_decay=0.75)
    new, _ = step(state, None, host_batch())
    expected = jax.tree.map(lambda old, p: 0.75 * old + 0.25 * p, state.ema_params, new.params)
    assert_trees_close(new.ema_params, expected, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(new.ema_params["head"]["kernel"], new.params["head"]["kernel"])


def test_nothing_is_updated_by_a_batch_that_is_not_finite():
    bad = tiny()
    step, state = make(bad, ema_decay=0.9)
    params = jax.tree.map(lambda x: x, state.params)
    params["head"]["bias"] = params["head"]["bias"].at[0].set(jnp.nan)
    state = type(state)(state.step, params, {}, state.ema_params, {}, state.opt_state)
    new, metrics = step(state, None, host_batch())
    assert metrics["finite"] == 0 and new.step == 1
    assert_trees_close(new.params, state.params)
    assert_trees_close(new.ema_params, state.ema_params)


def test_the_learning_rate_follows_the_step_and_not_the_updates_that_were_made():
    """Two updates were left out: the optimizer's own clock stands at 3, the state's at 5."""
    tx = optim.make_optimizer(
        params={"head": {"kernel": jnp.zeros((2, 2))}},
        schedule=lambda step: 0.1 * step,
        name="sgd",
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
    )
    params = {"head": {"kernel": jnp.ones((2, 2))}}
    clock = lambda part: isinstance(part, optax.ScaleByScheduleState)
    lagging = jax.tree.map(
        lambda part: part._replace(count=jnp.int32(3)) if clock(part) else part,
        tx.init(params),
        is_leaf=clock,
    )
    assert any(map(clock, jax.tree.leaves(lagging, is_leaf=clock)))
    state = TrainState(jnp.int32(5), params, {}, None, None, lagging)
    new = step_lib._updated(state, params, {}, tx, 0.0)
    np.testing.assert_allclose(new.params["head"]["kernel"], 1 - 0.1 * 5, rtol=1e-6)
    assert [
        int(part.count) for part in jax.tree.leaves(new.opt_state, is_leaf=clock) if clock(part)
    ] == [6]


def test_hard_teacher_moves_the_distillation_head_alone():
    """With alpha 1 the label loss weighs nothing, so the class head gets no gradient."""
    step, state = make(loss={"distillation": "hard", "alpha": 1.0}, teacher_fn=random_teacher)
    new, metrics = step(state, TEACHER, host_batch())
    np.testing.assert_array_equal(new.params["head"]["kernel"], state.params["head"]["kernel"])
    assert np.abs(new.params["head_dist"]["kernel"] - state.params["head_dist"]["kernel"]).max() > 0
    assert 0 <= metrics["teacher_agreement"] <= 1


def test_teacher_sees_the_students_tensor_and_gets_no_gradient():
    step, state = make(loss={"distillation": "soft", "tau": 1.0}, teacher_fn=random_teacher)

    def loss(teacher):
        return step(state, teacher, host_batch())[1]["loss"]

    value, gradient = jax.value_and_grad(loss)(TEACHER)
    assert value != loss({"kernel": TEACHER["kernel"] * 2})
    np.testing.assert_array_equal(gradient["kernel"], 0)


def test_evaluation_mode_leaves_stochastic_depth_out():
    """With `train_mode=False` the drop rate cannot matter."""
    results = []
    for rate in (0.0, 0.9):
        step, state = make(tiny(drop_path_rate=rate), train_mode=False)
        results.append(step(state, None, host_batch())[1]["loss"])
    assert results[0] == results[1]


@pytest.mark.parametrize("loss", [{}, {"distillation": "hard"}])
def test_eight_devices_compute_what_one_does(loss):
    model = tiny()
    step, state = make(model, loss=loss, teacher_fn=random_teacher if loss else None, ema_decay=0.9)
    mesh = sharding.make_mesh(fsdp=2)
    shardings = sharding.tree_shardings(mesh, jax.eval_shape(lambda: state), min_size=64)
    spread = jax.device_put(state, shardings)
    one, many = [], []
    for i in range(3):
        batch = host_batch(i)
        state, a = step(state, TEACHER, batch)
        spread, b = step(
            spread,
            jax.device_put(TEACHER, sharding.replicated(mesh)),
            sharding.to_global(mesh, batch),
        )
        one.append(a["loss"])
        many.append(b["loss"])
    np.testing.assert_allclose(one, many, rtol=1e-5)
