"""The training step: accumulation, averages, teacher, non-finite batches, device counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deit_jax import losses, models, optim, rng
from deit_jax.distributed import sharding
from deit_jax.train import dump, loss_scale
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
    image *= batch.get("scale", 1.0)
    return {
        "image": image,
        "target": jax.nn.one_hot(batch["label"], CLASSES),
        "label": batch["label"],
    }


def make(model=None, *, loss=None, teacher_fn=None, max_nonfinite=1, tx=None, **options):
    model, tx = model or tiny(), tx or optax.sgd(0.1)
    step = step_lib.make_train_step(
        model,
        noisy,
        losses.make_loss(**(loss or {})),
        tx,
        lambda step: jnp.float32(0.1),
        rng.base_key(0),
        teacher_fn,
        max_nonfinite,
        **options,
    )
    state = step_lib.init_state(model, tx, jax.random.key(1), ema=bool(options.get("ema_decay")))
    return jax.jit(step), state


def random_teacher(variables, image):
    return jnp.tanh(image.mean((1, 2)) @ variables["kernel"]) * 5


TEACHER = {"kernel": jnp.asarray(np.random.RandomState(3).randn(3, CLASSES), jnp.float32)}


def assert_trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("loss", [{}, {"distillation": "hard"}, {"distillation": "soft"}])
def test_micro_batches_equal_the_whole_batch(loss):
    teacher = random_teacher if loss else None
    whole, state = make(loss=loss, teacher_fn=teacher)
    accumulated, _ = make(loss=loss, teacher_fn=teacher, accum_steps=4)
    a, metrics_a = whole(state, TEACHER, host_batch())
    b, metrics_b = accumulated(state, TEACHER, host_batch())
    assert_trees_close(a.params, b.params, rtol=1e-5, atol=1e-6)
    assert_trees_close(metrics_a, metrics_b, rtol=1e-5, atol=1e-6)


def test_draws_depend_on_the_step_and_nothing_else():
    step, state = make()
    one, _ = step(state, None, host_batch())
    again, _ = step(state, None, host_batch())
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, again)))
    _, first = step(state, None, host_batch())
    _, second = step(dataclasses.replace(state, step=one.step), None, host_batch())
    assert first["loss"] != second["loss"]


def test_the_ema_moves_by_its_decay():
    step, state = make(ema_decay=0.75)
    new, _ = step(state, None, host_batch())
    expected = jax.tree.map(lambda old, p: 0.75 * old + 0.25 * p, state.ema_params, new.params)
    assert_trees_close(new.ema_params, expected, rtol=1e-5, atol=1e-7)
    assert not np.array_equal(new.ema_params["head"]["kernel"], new.params["head"]["kernel"])


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def counts(state):
    return int(state.step), int(state.nonfinite_steps), int(state.nonfinite_in_a_row)


def learned(state):
    """All that an update changes."""
    return dataclasses.replace(state, step=0, nonfinite_steps=0, nonfinite_in_a_row=0)


@pytest.fixture(scope="module")
def states_of():
    """Function of (bad steps, limit): the states after steps 0 to 6, of one compiled step."""

    def states(bad, limit):
        step, state = compiled[limit]
        history = [state]
        for number in range(1, 7):
            scale = np.float32(np.nan if number in bad else 1)
            state, metrics = step(state, None, host_batch(number) | {"scale": scale})
            assert metrics["finite"] == (number not in bad)
            assert metrics["nonfinite_steps"] == state.nonfinite_steps
            assert metrics["nonfinite_in_a_row"] == state.nonfinite_in_a_row
            history.append(state)
        assert step._cache_size() == 1, "compiled once, whatever happens"
        return history

    compiled = {
        limit: make(ema_decay=0.9, max_nonfinite=limit, tx=optax.adamw(1e-3)) for limit in (1, 4)
    }
    return states


def test_from_the_first_bad_step_on_nothing_changes(states_of):
    states = states_of({3, 5}, limit=1)
    assert [counts(state) for state in states[:4]] == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 1, 1)]
    assert same(learned(states[3]), learned(states[2])), "the update was left out"
    assert not same(learned(states[2]), learned(states[1]))
    assert all(same(state, states[3]) for state in states[4:]), "its step number included"
    before = dump._before(states[6])
    assert same(before, states[2]), "the dump is exactly the state before the step"


@pytest.mark.parametrize("bad", [{1}, {3}, {2, 3, 4}, {1, 3, 6}])
def test_skipped_steps_change_nothing_but_the_step_and_the_counts(states_of, bad):
    states = states_of(bad, limit=4)
    in_a_row = 0
    for number in range(1, 7):
        before, after = states[number - 1 : number + 1]
        in_a_row = in_a_row + 1 if number in bad else 0
        assert counts(after) == (number, len([n for n in bad if n <= number]), in_a_row)
        assert same(learned(before), learned(after)) == (number in bad)


def test_too_many_in_a_row_halt(states_of):
    states = states_of({1, 3, 4, 5, 6}, limit=4)
    assert counts(states[6]) == (6, 5, 4)
    step, state = make(max_nonfinite=4)
    halted = dataclasses.replace(state, nonfinite_in_a_row=jnp.int32(4))
    after, metrics = step(halted, None, host_batch())
    assert same(after, halted) and metrics["finite"] == 1


def scaled(state, **values):
    rule = loss_scale.dynamic("float16")
    return dataclasses.replace(state, loss_scale=rule.first_state() | values)


def test_an_overflowed_step_changes_the_scale_alone():
    model = tiny(dtype="float16", drop_path_rate=0.0)
    step, plain = make(model, ema_decay=0.9)
    # No f16 gradient of this size is finite.
    state = scaled(plain, scale=jnp.float32(2.0**40))
    new, metrics = step(state, None, host_batch())
    assert metrics["overflowed"] == 1 and metrics["finite"] == 0
    assert new.nonfinite_steps == new.nonfinite_in_a_row == 0
    assert new.loss_scale["overflowed_steps"] == 1 and new.loss_scale["scale"] == 2.0**39
    assert new.step == 1
    unscaled = lambda state: dataclasses.replace(learned(state), loss_scale=None)
    assert same(unscaled(new), unscaled(state)), "parameters, EMA, statistics and optimizer"
    # A loss that is not finite is no overflow, whatever the scale.
    bad = host_batch() | {"scale": np.float32(np.nan)}
    new, metrics = step(scaled(plain), None, bad)
    assert metrics["overflowed"] == 0 and new.nonfinite_steps == 1
    assert new.loss_scale["scale"] == 65536
    # At a scale of 1 there is none either: the run may stop.
    step, state = make(model.clone(dtype="float32"), loss_scale="dynamic")
    new, metrics = step(scaled(state, scale=jnp.float32(1.0)), None, bad)
    assert new.nonfinite_steps == 1 and metrics["overflowed"] == 0


@pytest.mark.parametrize("accum_steps", [1, 2])
def test_the_scale_does_not_show_in_the_update(accum_steps):
    """A power of two, in f32: not in a single bit, but where a compiler fuses it (jax 0.7.2)."""
    model = tiny(drop_path_rate=0.0)
    plain, state = make(model, ema_decay=0.9, accum_steps=accum_steps)
    with_scale, _ = make(model, ema_decay=0.9, accum_steps=accum_steps, loss_scale="static")
    expected, metrics = plain(state, None, host_batch())
    rule = loss_scale.static("float32")
    found, others = with_scale(
        dataclasses.replace(state, loss_scale=rule.first_state()), None, host_batch()
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, dataclasses.replace(found, loss_scale=None), expected)
    jax.tree.map(close, {key: others[key] for key in metrics}, metrics)


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
