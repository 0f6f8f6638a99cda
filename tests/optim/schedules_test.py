"""Learning-rate curves against timm's scheduler and the official training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from deit_jax import builders, errors
from deit_jax.optim import schedules
from deit_jax.train import schema

PER_EPOCH = 1248  # a multiple of the positions stored within an epoch
# The published runs of DeiT-B, DeiT-III S, a CIFAR fine-tune and 384; three that nobody published.
PUBLISHED = ("base", "deit3_small", "rising", "finetune_384")
RECIPES = (*PUBLISHED, "no_warmup", "short", "half_epochs")
# The published runs of RegNetY, and likewise.
PYCLS = ("regnety_160", "regnety_040", "pycls_floor", "pycls_no_warmup", "pycls_long_warmup")


@pytest.fixture(scope="module")
def stored(vectors):
    return dict(np.load(vectors / "schedules.npz"))


def options(recipe, **more):
    epochs, peak, floor, warmup, *first = (float(x) for x in recipe)
    more = {"warmup_lr": first[0]} | more if first else more
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


@pytest.mark.parametrize("name", PYCLS)
def test_pycls_epoch_is_the_loop_of_regnets_authors(stored, name):
    trained = stored[f"{name}_trained"]
    schedule = schedules.make_schedule(**options(stored[f"{name}_recipe"], kind="pycls_epoch"))
    first = np.arange(len(trained)) * PER_EPOCH
    np.testing.assert_allclose(schedule(first), trained, rtol=1e-5, atol=1e-9)
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


def test_cosine_with_a_warmup_prefix_falls_from_the_peak():
    sizes = {"batch_size": 512, "steps_per_epoch": 10, "total_steps": 100}
    schedule = schedules.make_schedule(**sizes, warmup_epochs=2, warmup_prefix=True)
    rates = schedule(np.array([20, 60, 100]))
    np.testing.assert_allclose(rates, [5e-4, (5e-4 + 1e-5) / 2, 1e-5], rtol=1e-5)


def test_a_cosine_by_epoch_moves_between_epochs_only():
    """mmengine's loop: the warm-up every step, then a cosine over what is left, by epochs."""
    sizes = {"batch_size": 512, "steps_per_epoch": 10, "total_steps": 100}
    schedule = schedules.make_schedule(
        **sizes, warmup_epochs=2, warmup_prefix=True, by_epoch=True, min_lr=1e-5
    )
    rates = np.asarray(schedule(np.arange(100))).reshape(10, 10)
    np.testing.assert_allclose(rates[:2].ravel(), np.linspace(1e-6, 5e-4, 21)[:20], rtol=1e-5)
    expected = 1e-5 + (5e-4 - 1e-5) * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    np.testing.assert_allclose(rates[2:], np.tile(expected[:, None], 10), rtol=1e-5)


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
        ({"kind": "cosin"}, "schedule 'cosin'; known: cosine"),
        ({"base_lr": -1.0}, "^base_lr must be"),
        ({"min_lr": -1.0}, "^min_lr must be"),
        ({"kind": "timm_epoch", "min_lr": -1.0}, "^min_lr must be"),
        ({"warmup_lr": -1.0}, "^warmup_lr must be"),
        ({"total_steps": 0}, "^total_steps must be"),
        ({"scale_by_batch": 0}, "^scale_by_batch must be"),
        ({"warmup_epochs": float("nan")}, "^warmup_epochs must be"),
        ({"base_lr": float("inf")}, "^base_lr must be a finite number, at least 0, not inf"),
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
        ({"kind": "timm_epoch", "min_lr": 1e-2}, "above the peak"),
        ({"base_lr": 1e-8, "kind": "constant", "scale_by_batch": None}, "warm-up falls"),
        ({"total_steps": 40}, "never reached"),
        ({"kind": "timm_epoch", "total_steps": 95}, "not a whole number"),
    ],
)
def test_warnings_name_what_is_seldom_meant(change, words):
    recipe = {"batch_size": 1024, "steps_per_epoch": 10, "total_steps": 100}
    assert schedules.make_schedule(**recipe).warnings == ()
    (line,) = schedules.make_schedule(**recipe | change).warnings
    assert words in line


COMMON = {"kind", "base_lr", "scale_by_batch", "warmup_epochs", "warmup_lr"}
COSINE = {"min_lr", "warmup_prefix", "by_epoch"}


@pytest.mark.parametrize(
    "kind, own",
    [
        ("cosine", COSINE),
        ("timm_epoch", COSINE - {"by_epoch"}),
        ("pycls_epoch", {"min_lr"}),
        ("constant", set()),
    ],
)
def test_options_are_those_of_the_chosen_curve(kind, own):
    assert set(builders.options(schedules.make_schedule, {"kind": kind})) == COMMON | own
    assert builders.headline(schedules.SCHEDULES[kind])
    for option in COSINE - own:
        section = {"kind": kind, option: 0.5}
        with pytest.raises(errors.ConfigError, match=f"unknown key config.schedule.{option};"):
            schema.resolve(
                ConfigDict({"model": {"name": "deit_tiny_patch16_224"}, "schedule": section})
            )
        with pytest.raises(TypeError, match=option):
            schedules.make_schedule(64, 7, 70, **section)


def test_a_curve_is_one_function_and_one_line(monkeypatch):
    def linear(run, *, final_lr: float = 0.0):
        """Linear to the final rate."""
        if final_lr > run.peak:
            run.warnings.append("rises")
        share = lambda step: jnp.minimum(step / run.total_steps, 1.0).astype(jnp.float32)
        return schedules.after_warmup(
            run, lambda step: run.peak + (final_lr - run.peak) * share(step)
        )

    monkeypatch.setitem(schedules.SCHEDULES, "linear", linear)
    options = {"kind": "linear", "final_lr": 2e-4, "warmup_epochs": 1.0}
    assert set(builders.options(schedules.make_schedule, options)) == COMMON | {"final_lr"}
    schedule = schedules.make_schedule(1024, 10, 100, **options)
    assert schedule.peak == 1e-3 and schedule.warnings == ()
    rates = schedule(np.array([0, 5, 50, 100]))
    np.testing.assert_allclose(rates, [1e-6, (1e-6 + 1e-3) / 2, 6e-4, 2e-4], rtol=1e-5)
    assert schedules.make_schedule(1024, 10, 100, **options | {"final_lr": 1.0}).warnings
