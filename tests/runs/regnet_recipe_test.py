"""The learning rate of RegNetY's own recipe, by the formula of its code."""

import pytest
import tiny_runs
from jax import numpy as jnp

from deit_jax import builders, models
from deit_jax.optim import param_groups, schedules


@pytest.mark.parametrize(("size", "peak"), [("160", 0.2), ("040", 0.4)])
def test_rate_of_regnet_is_the_published_one_at_every_epoch(size, peak):
    """`get_epoch_lr` of pycls: a warm-up factor from 0.1 to 1 on a cosine of 100 epochs to 0."""
    config = tiny_runs.load(f"teachers.py:regnety_{size}_dds")
    options = dict(config.schedule) | {"batch_size": config.train.batch_size}
    rate = schedules.make_schedule(**options, steps_per_epoch=10, total_steps=1000)
    epoch = jnp.arange(100)
    factor = jnp.where(epoch < 5, 0.1 + 0.9 * epoch / 5, 1.0)
    published = factor * peak * (1 + jnp.cos(jnp.pi * epoch / 100)) / 2
    assert jnp.allclose(rate(10 * epoch), published, rtol=1e-5)
    assert jnp.array_equal(rate(10 * epoch + 9), rate(10 * epoch))
    names = tiny_runs.load(f"teachers.py:regnety_{size}_dds,tiny").model
    params = models.abstract_variables(models.create_model(**names))["params"]
    rules = builders.bind(param_groups.make_rules, config.optim)(params)
    assert {rule.decay for rule in rules.values()} == {5e-5}
