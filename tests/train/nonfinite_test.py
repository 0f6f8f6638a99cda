"""Steps that are not finite: left out, counted, dumped exactly, repeated from the dump."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from deit_jax import cli, sharding
from deit_jax.checkpoint import layout
from deit_jax.errors import ConfigError
from deit_jax.tracking.writers import read_jsonl
from deit_jax.train import experiment, inflight, loop, nonfinite, replay
from deit_jax.train.step import make_train_step
from deit_jax.train_state import TrainState

NAN = float("nan")


def adding(state, teacher, batch):
    """Stands for a training step: adds the batch and the step, and leaves out what is bad."""
    finite = jnp.isfinite(batch)
    params = jnp.where(finite, state.params + batch * (state.step + 1), state.params)
    metrics = {"loss": batch, "finite": finite.astype(jnp.float32)}
    return TrainState(state.step + 1, params, {}, None, None, ()), metrics


def take_all(batches, *, again=True):
    """The state and what was read, steps going three ahead as in a run."""
    state = TrainState(jnp.int32(0), jnp.float32(0), {}, None, None, ())
    copies = sharding.replicated(sharding.make_mesh())
    flight = inflight.Steps(
        adding, state=jax.device_put(state, copies), teacher=None, copies=copies
    )
    read = []

    def take(keep):
        for step, finite, metrics in flight.take(keep=keep):
            read.append((step, finite, metrics["loss"]))
            if not finite:
                if not again:
                    return True
                flight.again()
        return False

    for step, value in enumerate(batches, start=1):
        flight.dispatch(step, jnp.float32(value))
        if take(keep=2):
            return flight.state, read
    take(keep=0)
    return flight.state, read


def test_the_state_found_at_a_bad_step_is_the_one_before_it():
    state, read = take_all([1, 2, NAN, 4, 5], again=False)
    assert [step for step, _, _ in read] == [1, 2, 3] and not read[-1][1]
    assert state.step == 3 and state.params == 1 * 1 + 2 * 2


@pytest.mark.parametrize("bad", [{1}, {3}, {2, 3, 4}, {1, 3, 6}])
def test_steps_after_a_skipped_one_are_taken_as_if_nothing_had_been(bad):
    batches = [NAN if step in bad else step for step in range(1, 7)]
    state, read = take_all(batches)
    assert [step for step, _, _ in read] == [1, 2, 3, 4, 5, 6]
    assert {step for step, finite, _ in read if not finite} == bad
    assert state.step == 6
    assert state.params == sum(step * step for step in range(1, 7) if step not in bad)


def test_the_step_is_compiled_once():
    copies = sharding.replicated(sharding.make_mesh())
    state = jax.device_put(TrainState(jnp.int32(0), jnp.float32(0), {}, None, None, ()), copies)
    traced = []

    def step(*args):
        traced.append(1)
        return adding(*args)

    flight = inflight.Steps(step, state=state, teacher=None, copies=copies)
    for number, value in enumerate([1, NAN, 3, 4], start=1):
        flight.dispatch(number, jnp.float32(value))
        for _, finite, _ in flight.take(keep=1):
            if not finite:
                flight.again()
    assert len(traced) == 1


def test_policies():
    assert nonfinite.make_policy().limit == 1
    assert nonfinite.make_policy(action="skip", max_in_a_row=7).limit == 7
    with pytest.raises(ConfigError, match="unknown.*'ignore'.*skip, stop"):
        nonfinite.make_policy(action="ignore")
    with pytest.raises(ConfigError, match="max_in_a_row=0"):
        nonfinite.make_policy(action="skip", max_in_a_row=0)


def options(compilation_cache, *overrides):
    return tiny_runs.tiny(
        "quickstart.py:plain",
        compilation_cache,
        "train.total_steps=5",
        "train.eval_every_steps=0",
        "model.depth=1",
        "log.tensorboard=False",
        "train.checkpoint_every_steps=0",
        "nonfinite.action=skip",
        *overrides,
    )


@pytest.fixture
def cheap_runs(monkeypatch):
    tiny_runs.make_cheap(monkeypatch)


@pytest.fixture
def bad_second_step(monkeypatch):
    """A run whose second step alone has a parameter that is not a number."""

    def poisoned(**kwargs):
        step = make_train_step(**kwargs)

        def train_step(state, teacher, batch):
            factor = jnp.where(state.step == 1, jnp.nan, 1.0)
            head = jax.tree.map(lambda x: x * factor, state.params["head"])
            poisoned = dataclasses.replace(state, params=state.params | {"head": head})
            new, metrics = step(poisoned, teacher, batch)
            # What the step leaves as it was still has the poison in it.
            finite = metrics["finite"] == 1
            new = jax.tree.map(lambda old, now: jnp.where(finite, now, old), state, new)
            return dataclasses.replace(new, step=state.step + 1), metrics

        return train_step

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
    # Three steps had been dispatched when the bad one was seen.
    assert leaves(whole / "nonfinite-step-2" / "1") == leaves(parts / "checkpoints" / "1")

    for workdir in (whole, parts):
        lines = {
            line["step"]: line
            for line in read_jsonl(workdir / "metrics.jsonl")
            if "train/skipped_steps" in line
        }
        assert [lines[step]["train/skipped_steps"] for step in range(1, 6)] == [0, 1, 1, 1, 1]
        assert "train/loss" not in lines[2] and lines[2]["train/averaged_steps"] == 0
        assert all(np.isfinite(lines[step]["train/loss"]) for step in (1, 3, 4, 5))


def test_a_diverged_run_stops_and_its_dump_repeats_the_step(
    cheap_runs, tmp_path, compilation_cache, capsys
):
    config = options(compilation_cache, "schedule.base_lr=1e38", "nonfinite.max_in_a_row=3")
    with pytest.raises(loop.NonFiniteError) as caught:
        tiny_runs.train(config, tmp_path)
    said = str(caught.value)
    assert "not finite at step 4" in said and "the last of 3 in a row" in said
    dump = tmp_path / "nonfinite-step-2"
    assert "nothing was saved yet" in said and f"--dump={dump}" in said
    # The state before step 4 is the one before step 2.
    assert not (tmp_path / "nonfinite-step-4").exists()
    told = json.loads((dump / "nonfinite.json").read_text())
    capsys.readouterr()
    assert cli.main(["replay", f"--dump={dump}"]) == 0
    out = capsys.readouterr().out
    assert f"step 2: loss {told['metrics']['loss']}, gradient norm" in out
    assert "not finite, as in the run" in out
    assert "parameters that are not finite: none" in out
    assert re.search(r"largest parameter: \S+e\+3[78] in \w+", out)
    assert "head/kernel: " in out.split("gradients that are not finite: ")[1]


def test_a_folder_that_is_no_dump(tmp_path, capsys):
    assert cli.main(["replay", f"--dump={tmp_path}"]) == 2
    assert "holds no dump" in capsys.readouterr().err


def test_values_that_are_not_finite_are_counted_by_name():
    tree = {"a": {"b": jnp.array([1.0, NAN, jnp.inf])}, "c": jnp.array([-3.0, 2.0])}
    assert replay.not_finite(tree) == {"a/b": (2, 3)}
    assert replay.largest_value(tree) == ("c", 3.0)
