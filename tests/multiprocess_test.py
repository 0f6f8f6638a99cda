"""Two processes train as one does; a signal to either stops both at the same step."""

import json
import os
import signal
import time

import child_runs
import numpy as np

from deit_jax.checkpoint import layout, read_variables
from deit_jax.preemption import EXIT_RESTART


def _finish(processes, workdir, status=0):
    for number, process in enumerate(processes):
        process.join(timeout=240)
        log = child_runs.log_file(workdir, number).read_text()
        assert process.exitcode == status, log[-4000:]


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_of_four_devices_train_as_one_of_one(tmp_path):
    options = (
        "train.total_steps=20", "train.eval_every_steps=0", "train.checkpoint_every_steps=0",
        "train.log_every_steps=1", "augment.cutmix=0.5", "model.drop_path_rate=0.2",
        f"compilation_cache={tmp_path / 'cache'}",
    )
    one, two = tmp_path / "one", tmp_path / "two"
    _finish([child_runs.start(one, *options, devices=1, batches=3)], one)
    _finish(child_runs.start_two(two, *options, devices=4, batches=3), two)
    assert "8 cpu, 2 process(es)" in child_runs.log_file(two, 0).read_text()

    digests = [json.loads((run / "batches.json").read_text()) for run in (two, one)]
    assert len(digests[0]) == 3 and digests[0][0] != digests[0][1]
    assert digests[0] == digests[1]
    ours, theirs = _lines(two), _lines(one)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in a.keys() & {"train/loss", "train/grad_norm", "eval/class/loss"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=f"{name} {a['step']}")
    for name in ("eval/count", "eval/class/top1", "eval_ema/class/top1", "eval/class/top5"):
        assert ours[-1][name] == theirs[-1][name]
    same, _ = read_variables(one)
    for name, value in read_variables(two)[0]["params"]["head"].items():
        np.testing.assert_allclose(value, same["params"]["head"][name], atol=1e-5)


def test_a_signal_to_one_process_saves_on_both_and_one_process_goes_on(tmp_path):
    workdir = tmp_path / "run"
    options = (
        "train.total_steps=100000", "train.eval_every_steps=0", "train.log_every_steps=1",
        "train.checkpoint_every_steps=0",
    )
    processes = child_runs.start_two(workdir, *options, devices=2)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (workdir / "metrics.jsonl").exists():
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGTERM)
    _finish(processes, workdir, EXIT_RESTART)
    (saved,) = layout.steps_in(workdir / "checkpoints")
    log = child_runs.log_file(workdir, 0).read_text()
    assert f"{saved:,}" in log and "start again" in log

    _finish([child_runs.start(workdir, *options, f"train.stop_at_step={saved + 3}")], workdir)
    steps = [line["step"] for line in _lines(workdir) if "train/loss" in line]
    assert steps == list(range(1, saved + 4))
