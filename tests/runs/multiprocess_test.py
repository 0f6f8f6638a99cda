"""Two processes train as one does; a signal to either stops both at the same step."""

import json
import os
import signal
import time

import child_runs
import numpy as np
import pytest
import tiny_runs

from deit_jax.checkpoint import layout, read_variables
from deit_jax.train import replay
from deit_jax.train.preemption import EXIT_RESTART

OPTIONS = (
    "train.total_steps=20",
    "train.eval_every_steps=0",
    "train.checkpoint_every_steps=0",
    "train.log_every_steps=1",
    "augment.cutmix=0.5",
    "model.drop_path_rate=0.2",
)


def _finish(processes, workdir, status=0):
    for number, process in enumerate(processes):
        process.join(timeout=240)
        log = child_runs.log_file(workdir, number).read_text()
        assert process.exitcode == status, log[-4000:]


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs that the runs of this module share."""
    return f"compilation_cache={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def one(tmp_path_factory, cache):
    """Workdir of a run on one process with one device."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    _finish([child_runs.start(workdir, *OPTIONS, cache, batches=3)], workdir)
    return workdir


def _assert_same_training(workdir, reference):
    ours, theirs = _lines(workdir), _lines(reference)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in a.keys() & {"train/loss", "train/grad_norm", "eval/class/loss"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=f"{name} {a['step']}")
    for name in ("eval/count", "eval/class/top1", "eval_ema/class/top1", "eval/class/top5"):
        assert ours[-1][name] == theirs[-1][name]
    head, same = (read_variables(path)[0]["params"]["head"] for path in (workdir, reference))
    for name, value in head.items():
        np.testing.assert_allclose(value, same[name], atol=1e-5)


@pytest.mark.long
def test_two_processes_of_four_devices_train_as_one_of_one(one, cache, tmp_path):
    two = tmp_path / "two"
    _finish(child_runs.start_two(two, *OPTIONS, cache, devices=4, batches=3), two)
    ours, theirs = (json.loads((run / "batches.json").read_text()) for run in (two, one))
    assert (ours["devices"], ours["processes"]) == (8, 2)
    assert len(ours["batches"]) == 3 and ours["batches"][0] != ours["batches"][1]
    assert ours["batches"] == theirs["batches"]
    _assert_same_training(two, one)


@pytest.mark.long
def test_a_signal_to_one_process_saves_on_both_and_one_process_goes_on(one, cache, tmp_path):
    workdir = tmp_path / "run"
    processes = child_runs.start_two(workdir, *OPTIONS, cache, devices=4)
    while processes[1].is_alive() and not (workdir / "metrics.jsonl").exists():
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    _finish(processes, workdir, EXIT_RESTART)
    (saved,) = layout.steps_in(workdir / "checkpoints")
    assert 1 <= saved < 20
    log = child_runs.log_file(workdir, 0).read_text()
    assert f"step {saved} saved" in log and "rerun the same command" in log

    _finish([child_runs.start(workdir, *OPTIONS, cache)], workdir)
    _assert_same_training(workdir, one)


@pytest.mark.long
def test_two_processes_leave_out_the_same_steps_and_stop_at_the_same(cache, tmp_path, monkeypatch):
    """The second update, the first after the warm-up, makes the parameters too large."""
    workdir = tmp_path / "run"
    bad = ("schedule.base_lr=1e38", "nonfinite.action=skip", "nonfinite.max_in_a_row=3")
    processes = child_runs.start_two(workdir, *OPTIONS, *bad, cache, devices=1)
    _finish(processes, workdir, 1)
    for number in range(2):
        line = child_runs.log_file(workdir, number).read_text().splitlines()[-1]
        assert line.startswith("stopped: ") and "at step 5" in line, line
    # One dump of whole arrays, made by both together, of the state before the last.
    assert [path.name for path in workdir.glob("nonfinite-*")] == ["nonfinite-step-5"]
    tiny_runs.on_one_device(monkeypatch)
    finite, _ = replay.replay(workdir / "nonfinite-step-5")
    assert finite is False
