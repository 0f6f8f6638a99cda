"""Fewer photos than a batch: what is made smaller, and that such a run trains and resumes."""

import numpy as np
import pytest
import tiny_runs
from data.own_photos_test import photos

from deit_jax import data
from deit_jax.data.arrays import ArraySource
from deit_jax.recipe import few_photos
from deit_jax.train import experiment


def fit(train, evaluation=None, devices=1, *overrides):
    config = tiny_runs.load("deit.py:ti", "input.repeats=1", *overrides)
    fitted = few_photos.fit(config, train=train, evaluation=evaluation, device_count=devices)
    assert (config.train.batch_size, config.eval.batch_size) == (1024, 256)
    return fitted


@pytest.mark.parametrize(
    ("train", "devices", "accum", "batch", "times"),
    [
        (2000, 8, 1, 1024, 1),
        (1024, 8, 1, 1024, 1),
        (1023, 8, 1, 1016, 1),
        (7, 1, 1, 6, 1),
        (7, 4, 1, 4, 1),
        (7, 4, 2, 8, 2),
        (7, 8, 1, 8, 2),
        (1, 8, 1, 8, 8),
        (1, 1, 1, 2, 2),
    ],
)
def test_the_largest_batch_that_can_be_filled(train, devices, accum, batch, times):
    fitted = fit(train, None, devices, f"step.accum_steps={accum}")
    assert (fitted.config.train.batch_size, fitted.times) == (batch, times)
    assert bool(fitted.notes) == (batch != 1024)
    assert data.steps_per_epoch(train * times, batch, 1) >= 1


@pytest.mark.parametrize("train", [100, 255, 256, 300, 511, 600])
def test_with_repeats_it_is_what_the_sampler_can_fill(train):
    fitted = fit(train, None, 510, "input.repeats=3")
    assert data.steps_per_epoch(train * fitted.times, fitted.config.train.batch_size, 3) >= 1


def test_evaluation_is_no_larger_than_its_images():
    assert fit(5000, 30, 8).config.eval.batch_size == 32
    assert fit(5000, 250, 8).notes == ()
    assert "there are 30 images" in fit(5000, 30, 8).notes[0]


def test_repeated_records():
    images = np.arange(7 * 3, dtype=np.uint8).reshape(7, 1, 1, 3)
    few = data.Repeated(ArraySource(images, np.arange(7), "seven"), 3)
    records, labels = few.get(np.array([0, 8, 20]))
    assert len(few) == 21 and labels.tolist() == [0, 1, 6] and few.labels.shape == (21,)
    np.testing.assert_array_equal(records[1], images[1])
    assert few.record_name(9) == "seven[2]"


def test_twenty_photos_are_enough_to_fine_tune(tmp_path):
    """On the eight devices of the tests."""
    for split, count in (("train", 10), ("val", 2)):
        photos(tmp_path / split, cat=count, dog=count)
    options = (f"data.path={tmp_path}", "model.depth=1", "model.dtype=float32")
    built = experiment.build(tiny_runs.load("finetune.py", *options, "train.batch_size=16"))
    assert (built.recipe.durations.records, built.recipe.durations.total_steps) == (20, 30)
    built = experiment.build(tiny_runs.load("finetune.py", *options))
    assert built.recipe.config.train.batch_size == built.recipe.durations.batch_size == 16
    assert "train.batch_size is 16, not 32: there are 20 training images" in built.data.notes
    assert "eval.batch_size is 8, not 64: there are 4 images" in built.data.notes


@pytest.mark.long
def test_seven_photos_train_evaluate_and_resume(tmp_path, capsys, compilation_cache):
    """On eight devices, with the recipe's batch of 32."""
    path = photos(tmp_path / "photos", cat=4, dog=5)
    overrides = (f"data.path={path}", "train.batch_size=256", "eval.batch_size=64")
    config = lambda *more: tiny_runs.tiny("finetune.py:s", compilation_cache, *overrides, *more)
    results = tiny_runs.train(config("train.stop_at_step=2"), tmp_path / "run")
    resumed = tiny_runs.train(config(), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "note: train.batch_size is 8, not 256: there are" in printed
    assert "note: eval.batch_size is 8, not 64" in printed and "resuming after step 2" in printed
    assert resumed["eval/count"] >= 2 and results is not None
