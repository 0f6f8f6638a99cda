"""A run killed at random moments ends with the same bits as one that was not."""

import json
import os
import random
import resource
import signal
import time

import child_runs
import numpy as np
import pytest
from child_runs import OVERRIDES, STEPS

from deit_jax import cli
from deit_jax.checkpoint import layout, read_variables
from deit_jax.tracking import starts
from deit_jax.train.preemption import EXIT_RESTART

# 100 once, by hand: DEIT_JAX_KILLS=100 pytest tests/runs/kill_test.py --timeout=3600
KILLS = int(os.environ.get("DEIT_JAX_KILLS", 10))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished run's workdir; its compiled programs are shared by the others."""
    return child_runs.finish(tmp_path_factory.mktemp("runs") / "unbroken", *OVERRIDES)


def _start(workdir, unbroken):
    cache = unbroken / "compilation_cache"
    return child_runs.start(workdir, *OVERRIDES, f"compilation_cache={cache}")


@pytest.mark.long
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(unbroken, tmp_path):
    dice, kills, finished, died_at = random.Random(0), 0, 0, []
    while not finished or kills < KILLS:
        workdir = tmp_path / f"broken-{finished}"
        run = _start(workdir, unbroken)
        if kills < KILLS:
            _wait_for_a_moment(run, workdir / "checkpoints", dice)
            run.kill()
        run.join()
        if run.exitcode == -signal.SIGKILL:
            kills += 1
            died_at.append(max(layout.steps_in(workdir / "checkpoints"), default=0))
            continue
        assert run.exitcode == 0, child_runs.log_file(workdir).read_text()
        finished += 1
        assert _leaves(workdir) == _leaves(unbroken)
        _check_rest(workdir, unbroken)
    assert len({step for step in died_at if 0 < step < STEPS}) >= 3, died_at


@pytest.mark.long
def test_goodput_has_each_step_once_and_all_else_as_lost(unbroken, tmp_path, capsys):
    """Killed after a line that the checkpoints do not have yet, and resumed a second later."""
    workdir = tmp_path / "run"
    run = _start(workdir, unbroken)
    while run.is_alive() and max(layout.steps_in(workdir / "checkpoints"), default=0) < 4:
        time.sleep(0.001)
    run.kill()
    run.join()
    stopped, pause = starts.goodput(workdir), 1.0
    time.sleep(pause)
    run = _start(workdir, unbroken)
    run.join()
    assert run.exitcode == 0, child_runs.log_file(workdir).read_text()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = {line["step"]: line["train/step_time"] for line in lines if "train/loss" in line}
    assert sorted(times) == list(range(4, STEPS + 1, 4)), "the log of every step, once"
    found = starts.goodput(workdir)
    assert found.starts == 2 and found.trained == pytest.approx(4 * sum(times.values()))
    first, second = starts.read(workdir)
    assert first["step"] == 0 and second["step"] >= 4
    assert found.total == pytest.approx(lines[-1]["time"] - first["time"])
    assert second["time"] - first["time"] > pause
    assert found.total - found.trained > pause + (stopped.total - stopped.trained) * 0.99
    assert cli.main(["compare", str(workdir)]) == 0
    assert f"goodput of run: {found}" in capsys.readouterr().out


@pytest.mark.long
def test_asked_to_stop_while_compiling_saving_or_evaluating(unbroken, tmp_path):
    workdir = tmp_path / "run"
    checkpoints, log = workdir / "checkpoints", child_runs.log_file(workdir)
    text = lambda: log.read_text() if log.exists() else ""
    moments = {
        "compiling": checkpoints.exists,
        "saving": lambda: any("tmp" in name for name in _names(checkpoints)),
        "evaluating": lambda: f"step 12/{STEPS}" in text(),
    }
    for moment, reached in moments.items():
        run = _start(workdir, unbroken)
        while run.is_alive() and not reached():
            time.sleep(0.001)
        os.kill(run.pid, signal.SIGTERM)
        run.join()
        assert run.exitcode == EXIT_RESTART, (moment, text())
        saved = max(layout.steps_in(checkpoints))
        assert f"step {saved:,} saved" in text().splitlines()[-1], moment
    assert 12 <= saved <= 14
    run = _start(workdir, unbroken)
    run.join()
    assert run.exitcode == 0, text()
    assert _leaves(workdir) == _leaves(unbroken)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    averaged = [line["train/averaged_steps"] for line in lines if "train/loss" in line]
    assert sum(averaged) == STEPS, "every step is in one mean, also those before a stop"


@pytest.mark.long
def test_a_disk_that_fills_stops_the_run_and_loses_nothing(unbroken, tmp_path):
    """Files of the running process can no longer grow, as on a full disk."""
    workdir = tmp_path / "run"
    run = _start(workdir, unbroken)
    while run.is_alive() and not layout.steps_in(workdir / "checkpoints"):
        time.sleep(0.001)
    # More than the log and the metrics need, less than a checkpoint.
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (32_768, resource.RLIM_INFINITY))
    run.join()
    log = child_runs.log_file(workdir).read_text()
    assert run.exitcode == 1, log
    assert "stopped: 3 checkpoints in a row could not be saved" in log
    assert "File too large" in log and "MB free" in log
    run = _start(workdir, unbroken)
    run.join()
    assert run.exitcode == 0, child_runs.log_file(workdir).read_text()
    assert _leaves(workdir) == _leaves(unbroken)
    _check_rest(workdir, unbroken)


def _wait_for_a_moment(run, folder, dice):
    """Until a random moment of start, training, saving or committing, counted in what is there.

    Not in seconds of the whole: on a busy machine all kills would fall into the start.
    """
    kind = dice.choice(["start", "saving", "committed", "committed"])
    before, news = set(_names(folder)), dice.randint(1, 4)
    deadline = time.monotonic() + (dice.uniform(0, 2) if kind == "start" else 60)
    while run.is_alive() and time.monotonic() < deadline:
        new = set(_names(folder)) - before
        half_written = any("tmp" in name for name in new)
        if kind == "saving" and half_written and dice.random() < 0.3:
            return
        if kind == "committed" and len(new) >= news:
            time.sleep(dice.uniform(0, 0.1))
            return
        time.sleep(0.001)


def _names(folder):
    return os.listdir(folder) if folder.is_dir() else []


def _leaves(workdir):
    """Shape, dtype and digest of everything in the last checkpoint."""
    return layout.read_description(workdir / "checkpoints" / str(STEPS)).leaves


def _check_rest(workdir, unbroken):
    for ema in (False, True):
        ours, theirs = (read_variables(path, ema=ema)[0]["params"] for path in (workdir, unbroken))
        np.testing.assert_array_equal(ours["head"]["kernel"], theirs["head"]["kernel"])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in lines if "train/loss" in line]
    assert len(trained) == len(set(trained))
    assert not layout.damaged_in(workdir / "checkpoints")
