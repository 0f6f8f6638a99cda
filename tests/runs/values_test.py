"""Values of a config that no run could use, and those that only a trial can."""

import ml_collections
import pytest
import tiny_runs

from deit_jax.errors import ConfigError
from deit_jax.train import experiment, schema


@pytest.mark.parametrize(
    "option", ["schedule.base_lr", "schedule.min_lr", "train.total_epochs", "augment.smoothing"]
)
def test_infinite_values_are_refused(option):
    with pytest.raises(ConfigError, match=rf"^config.{option} takes float .*, not '1e999'$"):
        tiny_runs.load("deit.py:ti", f"{option}=1e999")
    # In a file they can also be NaN.
    section, key = option.split(".")
    for value in (float("inf"), float("nan")):
        given = {section: {key: value}, "model": {"name": "deit_tiny_patch16_224"}}
        with pytest.raises(ConfigError, match=rf"config.{option} takes float, not {value}"):
            schema.resolve(ml_collections.ConfigDict(given))


def test_a_trial_may_end_within_the_warm_up_of_its_recipe():
    trial = ("data.source=digits", "train.batch_size=16", "train.total_steps=20")
    warnings = experiment.build(tiny_runs.load("deit.py:ti", *trial)).recipe.schedule.warnings
    assert any("never reached" in text for text in warnings)
