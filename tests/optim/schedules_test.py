"""Learning-rate curves against timm's scheduler and the official training loop."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import errors
from deit_jax.optim import schedules

PER_EPOCH = 1248  # a multiple of the positions stored within an epoch
RECIPES = ("base", "deit3_small", "rising", "no_warmup")


@pytest.fixture(scope="module")
def stored(vectors):
    return dict(np.load(vectors / "schedules.npz"))


def options(recipe, **more):
    epochs, peak, floor, warmup = (float(x) for x in recipe)
    return {
        "batch_size": 1024,
        "scale_by_batch": None,
        "base_lr": peak,
        "min_lr": floor,
        "warmup_epochs": warmup,
        "steps_per_epoch": PER_EPOCH,
        "total_steps": int(epochs) * PER_EPOCH,
    } | more


@pytest.mark.parametrize("name", RECIPES)
def test_cosine_per_step_is_timms_curve_at_fractional_epochs(stored, name):
    curve = stored[f"{name}_curve"]
    epochs = int(stored[f"{name}_recipe"][0])
    steps = np.arange(len(curve)) * (epochs * PER_EPOCH // len(curve))
    schedule = schedules.make_schedule(**options(stored[f"{name}_recipe"]))
    np.testing.assert_allclose(schedule(steps), curve, rtol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_timm_epoch_is_the_official_loop_with_its_epoch_of_delay(stored, name):
    trained = stored[f"{name}_trained"]
    schedule = schedules.make_schedule(**options(stored[f"{name}_recipe"], kind="timm_epoch"))
    first = np.arange(len(trained)) * PER_EPOCH
    np.testing.assert_allclose(schedule(first), trained, rtol=1e-6)
    np.testing.assert_array_equal(schedule(first + PER_EPOCH - 1), schedule(first))


def test_published_recipe_runs_two_epochs_at_the_warmup_rate():
    schedule = schedules.make_schedule(
        batch_size=1024, steps_per_epoch=1251, total_steps=375300, kind="timm_epoch"
    )
    rates = np.asarray(schedule(np.arange(300) * 1251))
    np.testing.assert_allclose(
        rates[[0, 1, 2, 3, 4, 5]] * 1e3, [0.001, 0.001, 0.2008, 0.4006, 0.6004, 0.8002], rtol=1e-6
    )
    np.testing.assert_allclose(rates[[6, 150, 299]] * 1e3, [0.99932, 0.510, 0.01011], rtol=1e-2)


def test_end_is_the_floor_and_stays_there():
    schedule = schedules.make_schedule(batch_size=512, steps_per_epoch=10, total_steps=100)
    np.testing.assert_allclose(schedule(np.array([100, 1000])), [1e-5, 1e-5], rtol=1e-6)


def test_constant_keeps_the_peak_after_the_warmup():
    schedule = schedules.make_schedule(
        batch_size=1024, steps_per_epoch=10, total_steps=100, kind="constant", warmup_epochs=2
    )
    rates = np.asarray(schedule(np.arange(100)))
    np.testing.assert_allclose(rates[:20], np.linspace(1e-6, 1e-3, 21)[:20], rtol=1e-5)
    np.testing.assert_allclose(rates[20:], 1e-3, rtol=1e-6)


@pytest.mark.parametrize("scale, peak", [(512, 2e-3), (256, 4e-3), (None, 5e-4)])
def test_only_the_peak_scales_with_the_batch(scale, peak):
    sizes = {"batch_size": 2048, "steps_per_epoch": 4, "total_steps": 400}
    schedule = schedules.make_schedule(scale_by_batch=scale, kind="constant", **sizes)
    np.testing.assert_allclose(schedule(np.array([0, 399])), [1e-6, peak], rtol=1e-6)


def test_jit_gives_one_f32_scalar_a_step():
    sizes = {"batch_size": 64, "steps_per_epoch": 7, "total_steps": 70}
    schedule = schedules.make_schedule(**sizes)
    rate = jax.jit(schedule)(jnp.int32(50))
    assert rate.dtype == jnp.float32 and rate.shape == ()
    np.testing.assert_allclose(rate, schedule(50), rtol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "cosin"}, "cosine"),
        ({"base_lr": -1.0}, "base_lr"),
        ({"total_steps": 0}, "total_steps"),
        ({"scale_by_batch": 0}, "scale_by_batch"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs"),
    ],
)
def test_wrong_values_are_named(change, words):
    sizes = {"batch_size": 64, "steps_per_epoch": 7, "total_steps": 70}
    with pytest.raises(errors.ConfigError, match=words):
        schedules.make_schedule(**sizes | change)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"base_lr": 7.5e-6, "scale_by_batch": None}, "above the peak"),
        ({"base_lr": 1e-5, "scale_by_batch": None}, "constant"),
        ({"base_lr": 1e-8, "kind": "constant", "scale_by_batch": None}, "warm-up falls"),
        ({"total_steps": 40}, "never reached"),
        ({"kind": "timm_epoch", "total_steps": 95}, "no whole number"),
    ],
)
def test_warnings_name_what_is_seldom_meant(change, words):
    published = inspect.signature(schedules.make_schedule).parameters.values()
    defaults = {p.name: p.default for p in published if p.default is not p.empty}
    recipe = defaults | {"batch_size": 1024, "steps_per_epoch": 10, "total_steps": 100}
    assert schedules.schedule_warnings(**recipe) == []
    (line,) = schedules.schedule_warnings(**recipe | change)
    assert words in line
