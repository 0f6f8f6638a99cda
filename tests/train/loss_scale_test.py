"""The scaled loss of float16: as good as float32, and overflows are counted for themselves."""

import json

import jax.numpy as jnp
import pytest
import tiny_runs

from deit_jax.errors import ConfigError
from deit_jax.train import loss_scale

SCALED = ("finite_steps", "overflowed_steps", "overflowed_in_a_row")


def after(rule, pattern):
    """The state after steps that were finite (.), overflowed (o) or non-finite (x)."""
    state = rule.first_state()
    for step in pattern:
        state = rule.next_state(state, jnp.asarray(step == "."), jnp.asarray(step == "o"))
    return float(state["scale"]), [int(state[key]) for key in SCALED]


def test_the_dynamic_scale_follows_torchs_rules():
    rule = loss_scale.dynamic("float16", initial_scale=1024, growth_interval=3)
    assert after(rule, "..") == (1024, [2, 0, 0])
    assert after(rule, "...") == (2048, [0, 0, 0])
    assert after(rule, "..o") == (512, [0, 1, 1])
    assert after(rule, "..o..") == (512, [2, 1, 0]), "the interval begins anew"
    assert after(rule, "oooo") == (64, [0, 4, 4])
    assert after(rule, ".x.") == (1024, [2, 0, 0]), "a non-finite step is none of its business"
    assert after(rule, "o" * 20)[0] == 1.0
    tolerates = lambda scale: bool(rule.tolerates(rule.first_state() | {"scale": scale}))
    assert tolerates(2.0) and not tolerates(1.0), "below 1 it cannot go"


def test_the_static_scale_stays_and_tolerates_so_many():
    rule = loss_scale.static("float16", scale=256.0, max_overflows=2)
    assert after(rule, ".o.oo") == (256, [0, 3, 2])
    tolerates = lambda count: bool(rule.tolerates({"overflowed_in_a_row": jnp.int32(count)}))
    assert tolerates(1) and not tolerates(2)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"loss_scale": "fixed"}, "unknown loss_scale 'fixed'; known: auto, dynamic, none, static"),
        ({"loss_scale": "static", "scale": 0.5}, "scale must be at least 1"),
        ({"loss_scale": "dynamic", "growth_interval": 0}, "growth_interval at least 1"),
    ],
)
def test_what_cannot_be_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        loss_scale.make_rule("float16", section)


def test_auto_scales_float16_alone():
    assert loss_scale.make_rule("float16", {}) is not None
    assert loss_scale.make_rule("float32", {}) is loss_scale.make_rule("bfloat16", {}) is None


RUN = (
    *("train.total_steps=20", "train.log_every_steps=1", "schedule.warmup_epochs=0"),
    *("train.checkpoint_every_steps=10", "train.eval_every_steps=0", "log.trackers="),
    *("model.depth=2", "model.embed_dim=32", "train.batch_size=64"),
)


def losses_of(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "train/averaged_steps" in line}


@pytest.mark.long
def test_twenty_steps_on_digits_are_near_those_of_float32(tmp_path, monkeypatch):
    """Resumed in the middle, with a scale that overflows at first."""
    tiny_runs.make_cheap(monkeypatch)

    def run(name, *overrides):
        config = tiny_runs.load("quickstart.py:plain", *RUN, *overrides)
        tiny_runs.train(config, tmp_path / name)
        return losses_of(tmp_path / name)

    exact = run("f32", "model.dtype=float32")
    half = ("model.dtype=float16", "step.initial_scale=16777216.0")
    run("f16", *half, "train.stop_at_step=10")
    found = run("f16", *half)
    whole = run("whole", *half)
    counted = [found[step]["train/overflowed_steps"] for step in range(1, 21)]
    skipped = int(counted[-1])
    assert 0 < skipped < 15 and found[20]["train/skipped_steps"] == 0
    for step, line in whole.items():
        assert line.get("train/loss") == found[step].get("train/loss"), "resumed bit for bit"
    gentle = run("gentle", "model.dtype=float16")
    assert gentle[20]["train/overflowed_steps"] == 0
    for step in range(1, 21):
        assert gentle[step]["train/loss"] == pytest.approx(exact[step]["train/loss"], abs=1e-2)
