"""Durations become steps."""

import pytest

from deit_jax.errors import ConfigError
from deit_jax.recipe.durations import make_durations


def test_imagenet_has_the_published_number_of_steps():
    plan = make_durations(1_281_167)
    assert plan.steps_per_epoch == 1251
    assert plan.total_steps == 375_300


def test_steps_count_instead_of_epochs():
    plan = make_durations(100, batch_size=10, total_epochs=3.0, total_steps=7)
    assert plan.total_steps == plan.stop_at == 7
    assert make_durations(100, batch_size=10, total_epochs=0.5).total_steps == 5


def test_things_are_due_on_their_step_and_at_the_end():
    plan = make_durations(100, batch_size=10, total_steps=25, eval_every_epochs=1.0)
    assert [s for s in range(1, 26) if plan.is_due(plan.eval_every, s)] == [10, 20, 25]
    assert not plan.is_due(0, 25)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 101}, "batch_size must be at most 100, the number of training images"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 10, "total_epochs": 0.0}, "must be above 0"),
        ({"batch_size": 10, "total_epochs": -1.0}, "must be a finite number"),
        ({"batch_size": 10, "eval_every_steps": -5}, "eval_every_steps must be at least 0, not -5"),
        ({"batch_size": 10, "log_every_steps": 0}, "log_every_steps must be at least 1, not 0"),
    ],
)
def test_impossible_durations_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_durations(100, **options)
