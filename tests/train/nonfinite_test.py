"""Steps that are not finite: left out, counted, dumped exactly, repeated from the dump."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from deit_jax import cli, rng
from deit_jax.checkpoint import layout
from deit_jax.errors import ConfigError
from deit_jax.tracking.jsonl import read_jsonl
from deit_jax.train import experiment, loop, nonfinite, replay

NAN = float("nan")


def test_limits():
    assert nonfinite.make_limit() == 1
    assert nonfinite.make_limit(action="skip", max_in_a_row=7) == 7
    with pytest.raises(ConfigError, match="unknown action 'ignore'.*skip, stop"):
        nonfinite.make_limit(action="ignore")
    with pytest.raises(ConfigError, match="max_in_a_row must be at least 1, not 0"):
        nonfinite.make_limit(action="skip", max_in_a_row=0)
    with pytest.raises(ConfigError, match="nonfinite.max_in_a_row"):
        tiny_runs.load("quickstart.py:plain", "nonfinite.max_in_a_row=3")


def options(compilation_cache, *overrides):
    return tiny_runs.tiny(
        "quickstart.py:plain",
        compilation_cache,
        "train.total_steps=5",
        "train.eval_every_steps=0",
        "model.depth=1",
        "log.trackers=",
        "train.checkpoint_every_steps=0",
        "nonfinite.action=skip",
        *overrides,
    )


@pytest.fixture
def cheap_runs(monkeypatch):
    tiny_runs.make_cheap(monkeypatch)


@pytest.fixture
def bad_second_step(monkeypatch):
    """A run whose second step alone has images that are not finite."""
    make = experiment.step_lib.make_train_step

    def poisoned(model, augment_fn, *args, **options):
        def augmented(key, batch):
            inputs = augment_fn(key, batch)
            second = rng.step_key(rng.base_key(0), rng.Purpose.AUGMENT, 1)
            bad = jnp.all(jax.random.key_data(key) == jax.random.key_data(second))
            return inputs | {"image": jnp.where(bad, jnp.nan, inputs["image"])}

        return make(model, augmented, *args, **options)

    monkeypatch.setattr(experiment.step_lib, "make_train_step", poisoned)


def leaves(folder):
    return layout.read_description(folder).leaves


def test_a_skipped_step_is_counted_and_resume_stays_exact(
    bad_second_step, cheap_runs, tmp_path, compilation_cache, capsys
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tiny_runs.train(options(compilation_cache), whole)
    out = capsys.readouterr().out
    assert "skipped: loss or gradient is not finite at step 2 (loss nan" in out
    assert "1 so far" in out and "skipped 1" in out
    first = ("train.stop_at_step=2", "train.checkpoint_every_steps=1", "checkpoint.keep_latest=3")
    rest = ("checkpoint.keep_latest=3",)
    for some in (first, rest):
        tiny_runs.train(options(compilation_cache, *some), parts)
    # The optimizer's clocks, the counts and the draws are those of the unbroken run.
    assert leaves(whole / "checkpoints" / "5") == leaves(parts / "checkpoints" / "5")
    assert not list(tmp_path.glob("*/nonfinite-step-*")), "the state has moved on"

    for workdir in (whole, parts):
        lines = {
            line["step"]: line
            for line in read_jsonl(workdir / "metrics.jsonl")
            if "train/skipped_steps" in line
        }
        assert [lines[step]["train/skipped_steps"] for step in range(1, 6)] == [0, 1, 1, 1, 1]
        assert "train/loss" not in lines[2] and lines[2]["train/averaged_steps"] == 0
        assert all(np.isfinite(lines[step]["train/loss"]) for step in (1, 3, 4, 5))


def test_the_dump_of_a_run_that_stops_is_the_state_before_the_step(
    bad_second_step, cheap_runs, tmp_path, compilation_cache
):
    """Three steps have been dispatched when the bad one is seen."""
    config = options(compilation_cache, "nonfinite.action=stop", "train.checkpoint_every_steps=1")
    with pytest.raises(loop.NonFiniteError, match="not finite at step 2") as caught:
        tiny_runs.train(config, tmp_path / "saves")
    assert "checkpoint of step 1 is intact" in str(caught.value)
    config = options(compilation_cache, "nonfinite.action=stop")
    with pytest.raises(loop.NonFiniteError, match="action=skip skips single.*nothing was saved"):
        tiny_runs.train(config, tmp_path / "runs_ahead")
    saved = leaves(tmp_path / "saves" / "checkpoints" / "1")
    for run in ("saves", "runs_ahead"):
        assert leaves(tmp_path / run / "nonfinite-step-2" / "1") == saved


def test_the_count_in_a_row_survives_resume_and_a_lower_limit(
    bad_second_step, cheap_runs, tmp_path, compilation_cache, monkeypatch
):
    tiny_runs.train(options(compilation_cache, "train.stop_at_step=2"), tmp_path)
    states, first_state = [], loop.init_lib.first_state
    keep = lambda *args: states.append(first_state(*args)) or states[-1]
    monkeypatch.setattr(loop.init_lib, "first_state", keep)
    monkeypatch.setattr(loop._Run, "run", lambda self: self.checkpointer.close())
    for changed in ((), ("nonfinite.action=stop",)):
        tiny_runs.train(options(compilation_cache, *changed), tmp_path)
    assert [int(state.nonfinite_in_a_row) for state in states] == [1, 0]
    assert [int(state.nonfinite_steps) for state in states] == [1, 1]


def test_a_diverged_run_stops_and_its_dump_repeats_the_step(
    cheap_runs, tmp_path, compilation_cache, capsys
):
    config = options(compilation_cache, "schedule.base_lr=1e38", "nonfinite.max_in_a_row=3")
    with pytest.raises(loop.NonFiniteError) as caught:
        tiny_runs.train(config, tmp_path)
    message = str(caught.value)
    assert "not finite at step 4" in message and "the last of 3 in a row" in message
    (dump,) = tmp_path.glob("nonfinite-step-*")
    assert dump.name == "nonfinite-step-4"
    assert "nothing was saved yet" in message and f"--dump={dump}" in message
    dumped = json.loads((dump / "nonfinite.json").read_text())
    capsys.readouterr()
    assert cli.main(["replay", f"--dump={dump}"]) == 0
    out = capsys.readouterr().out
    assert f"step 4: loss {dumped['metrics']['loss']}, gradient norm" in out
    assert "not finite, as in the run" in out
    assert "parameters that are not finite: none" in out
    assert re.search(r"largest parameter: \S+e\+3[78] in \w+", out)
    assert "head/kernel: " in out.split("gradients that are not finite: ")[1]


def test_a_folder_that_is_not_a_dump(tmp_path, capsys):
    assert cli.main(["replay", f"--dump={tmp_path}"]) == 2
    assert "is not a dump" in capsys.readouterr().err


def test_values_that_are_not_finite_are_counted_by_name():
    tree = {"a": {"b": jnp.array([1.0, NAN, jnp.inf])}, "c": jnp.array([-3.0, 2.0])}
    assert replay.not_finite(tree) == {"a/b": (2, 3)}
    assert replay.largest_value(tree) == ("c", 3.0)
