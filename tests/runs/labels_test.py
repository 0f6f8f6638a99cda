"""Runs with stored labels: the bits of the live teacher, and labels that are made anywhere."""

import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny_runs

from deit_jax.checkpoint import read_variables
from deit_jax.errors import ConfigError
from deit_jax.tracking.jsonl import read_jsonl
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import labels as labels_lib
from deit_jax.train import loop
from deit_jax.train.preemption import EXIT_RESTART

# Many starts, each of which compiles: a busy machine may take its time.
pytestmark = pytest.mark.timeout(1800)

# Two epochs of five steps.
SIZES = (
    "train.batch_size=256",
    "train.total_steps=8",
    "train.log_every_steps=1",
    "train.checkpoint_every_steps=3",
    "train.eval_every_steps=8",
    "eval.agreement=false",
    "log.trackers=",
)
MIXED = ("input.repeats=3", "augment.erasing_prob=0.5", "augment.mixup=0.8", "augment.cutmix=1.0")
TIMES = ("images_per_second", "step_time", "data_wait", "eta", "start/", "memory_gib", "mfu")


def assert_same_run(workdir, reference):
    """Parameters, EMA and all metrics but times.

    The compiler of these tests rounds a student beside a teacher differently; that users'
    rounds equally is tested, to the bit, in tests/train/labels_test.py.
    """
    for ema in (False, True):
        ours, theirs = (read_variables(folder, ema=ema)[0] for folder in (workdir, reference))
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), ours, theirs)
    ours, theirs = (_metrics(folder) for folder in (workdir, reference))
    assert len(ours) == len(theirs) and "train/teacher_agreement_dist" in ours[0]
    for line, reference_line in zip(ours, theirs, strict=True):
        assert line == pytest.approx(reference_line, rel=1e-4)


def _metrics(workdir):
    lines = read_jsonl(workdir / "metrics.jsonl")
    return [
        {key: value for key, value in line.items() if not any(part in key for part in TIMES)}
        for line in lines
        if "train/loss" in line
    ]


def epochs_of(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.labels")}


@pytest.mark.long
def test_a_run_with_stored_labels_is_the_live_run(
    tiny_teacher, compilation_cache, tmp_path, monkeypatch
):
    """Recorded, replayed with a stop in the middle, and made without a student."""
    tiny_runs.make_cheap(monkeypatch)
    load = lambda *options: tiny_runs.tiny(
        "quickstart.py:student", *SIZES, *MIXED, compilation_cache, *options
    )
    live, replay, alone = tmp_path / "live", tmp_path / "replay", tmp_path / "alone"
    stored = f"teacher.labels={tmp_path / 'labels'}"
    of_teacher = f"teacher.init={tiny_teacher}"
    tiny_runs.train(load(of_teacher, f"teacher.record={tmp_path / 'labels'}"), live)
    tiny_runs.train(load(stored, "train.stop_at_step=4"), replay)
    tiny_runs.train(load(stored), replay)
    assert_same_run(replay, live)
    made = load(of_teacher, f"teacher.record={alone}")
    labels_lib.make_labels(made, epochs=None)
    assert epochs_of(alone) == epochs_of(tmp_path / "labels")
    with pytest.raises(ConfigError, match="augment.mixup: 0.8 there, 0.1 here"):
        tiny_runs.train(load(stored, "augment.mixup=0.1"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_steps_after_a_halt_leave_no_labels(tiny_teacher, compilation_cache, tmp_path, monkeypatch):
    """The last step of the epoch has been dispatched when the bad one before it is seen."""
    tiny_runs.make_cheap(monkeypatch)
    fourth = np.asarray([False, False, False, True, False])
    config = tiny_runs.tiny(
        "quickstart.py:student",
        *(*SIZES, "train.checkpoint_every_steps=0", "eval.agreement=false", compilation_cache),
        *(f"teacher.init={tiny_teacher}", f"teacher.record={tmp_path / 'labels'}"),
    )
    make = experiment_lib.step_lib.make_train_step

    def poisoned(*args, **options):
        step = make(*args, **options)

        def bad(state, teacher, batch):
            nan = jax.numpy.where(jax.numpy.asarray(fourth)[state.step], jax.numpy.nan, 0.0)
            params = jax.tree.map(lambda leaf: leaf + nan, state.params)
            return step(dataclasses.replace(state, params=params), teacher, batch)

        return bad

    monkeypatch.setattr(experiment_lib.step_lib, "make_train_step", poisoned)
    with pytest.raises(loop.NonFiniteError, match="not finite at step 4"):
        tiny_runs.train(config, tmp_path / "run")
    assert not epochs_of(tmp_path / "labels")


def test_epochs_to_be_made():
    assert labels_lib.parse_epochs(" 2:10") == (2, 10)
    for text in ("2", "a:b", "3:2", "-1:2", "1:2:3"):
        with pytest.raises(ConfigError, match="is not first:last"):
            labels_lib.parse_epochs(text)


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True, scope="module")
def none_is_left():
    """Of a test that failed."""
    yield
    for process in STARTED:
        process.kill()
        process.wait()


def start(*command, devices=1):
    """`train.py` or `deit-jax` as users run them."""
    xla = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "PJRT_NPROC": str(2 * devices)}
    program = [sys.executable, "train.py"]
    if command[0] == "labels":
        code = "import sys; from deit_jax.cli import main; sys.exit(main())"
        program = [sys.executable, "-c", code]
    process = subprocess.Popen(
        [*program, *command],
        cwd=tiny_runs.ROOT,
        env=env | {"PYTHONPATH": str(tiny_runs.ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def finish(*processes, status=0):
    for process in processes:
        output, _ = process.communicate()
        assert process.returncode == status, output[-4000:]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, tiny_teacher):
    """Of a distilled run with everything that is drawn switched on: (all runs', the live one's)."""
    cache = tmp_path_factory.mktemp("cache")
    options = [*SIZES, "data.source=digits", "step.ema_decay=0.9", f"compilation_cache={cache}"]
    shared = ["--config=configs/deit_distilled.py:ti,tiny", *(f"--config.{o}" for o in options)]
    return shared, ["--config.teacher.name=", f"--config.teacher.init={tiny_teacher}"]


@pytest.fixture(scope="module")
def recorded(arguments, tmp_path_factory):
    """(workdir of the live run, its labels)."""
    shared, teacher = arguments
    folder = tmp_path_factory.mktemp("recorded")
    record = f"--config.teacher.record={folder / 'labels'}"
    finish(start(*shared, *teacher, record, f"--workdir={folder / 'live'}"))
    return folder / "live", folder / "labels"


@pytest.mark.long
def test_the_whole_recipe_is_replayed_to_the_bit(arguments, recorded, tmp_path):
    """RandAugment, mixing, erasing, repeats; programs compiled as users' are."""
    live, labels = recorded
    stored = [*arguments[0], f"--config.teacher.labels={labels}"]
    workdir = f"--workdir={tmp_path / 'run'}"
    finish(start(*stored, workdir, "--config.train.stop_at_step=4"))
    finish(start(*stored, workdir))
    assert_same_run(tmp_path / "run", live)
    finish(start(*stored, f"--workdir={tmp_path / 'eight'}", devices=8))
    for ours, theirs in zip(_metrics(tmp_path / "eight"), _metrics(live), strict=True):
        for key in ("train/loss", "train/grad_norm", "train/teacher_agreement"):
            np.testing.assert_allclose(ours.get(key, 0), theirs.get(key, 0), rtol=1e-4)


def start_two(*command):
    """One call of two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [start(*command, *flags, f"--process_id={number}") for number in range(2)]


@pytest.mark.long
def test_one_set_serves_ti_s_and_b(arguments, recorded, tmp_path):
    """That of ti, with students of their own widths, losses and stochastic depth."""
    shared = [text for text in arguments[0] if not text.startswith("--config=")]
    shared += [f"--config.teacher.labels={recorded[1]}", "--config.train.stop_at_step=2"]
    seen = []
    for size, heads in (("s", 6), ("b_hard", 12)):
        widths = [f"--config.model.num_heads={heads}", f"--config.model.embed_dim={64 * heads}"]
        config = f"--config=configs/deit_distilled.py:{size},tiny"
        finish(start(config, *shared, *widths, f"--workdir={tmp_path / size}"))
        seen.append([line["train/loss"] for line in _metrics(tmp_path / size)])
    assert np.all(np.isfinite(seen)) and np.shape(seen) == (2, 2) and seen[0] != seen[1]


@pytest.mark.long
def test_labels_are_made_again_by_two_processes_and_after_a_kill(arguments, recorded, tmp_path):
    shared, teacher = arguments
    command = ["labels", *shared, *teacher]
    finish(*start_two(*command, f"--output={tmp_path / 'two'}"))
    assert epochs_of(tmp_path / "two") == epochs_of(recorded[1])

    longer = [*command, "--epochs=0:39", f"--output={tmp_path / 'killed'}"]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = start(*longer)
        known = set(epochs_of(tmp_path / "killed"))
        while process.poll() is None and set(epochs_of(tmp_path / "killed")) <= known:
            time.sleep(0.01)
        process.send_signal(number)
        finish(process, status=-number if number == signal.SIGKILL else EXIT_RESTART)
    finish(start(*longer))
    found = epochs_of(tmp_path / "killed")
    first = epochs_of(recorded[1])["epoch-00000.labels"]
    assert len(found) == 40 and found["epoch-00000.labels"] == first
    assert len({len(data) for data in found.values()}) == 1


@pytest.mark.long
def test_two_processes_make_labels_in_a_bucket_after_a_kill(gcs, bucket, tiny_teacher, tmp_path):
    """Each its share of the rows; the store does not answer for a while besides."""
    options = [f"teacher.init={tiny_teacher}", "train.batch_size=256"]
    options.append(f"compilation_cache={tmp_path / 'cache'}")
    command = ["labels", "--config=configs/quickstart.py:student,tiny", "--epochs=0:19"]
    command += [f"--output=gs://{bucket}/labels", *(f"--config.{text}" for text in options)]
    files = lambda: [name for name in gcs.names(bucket) if name.endswith(".labels")]
    processes = start_two(*command)
    while not files() and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    processes[0].kill()
    finish(processes[0], status=-signal.SIGKILL)
    finish(processes[1], status=EXIT_RESTART)
    known = {name: gcs.content(bucket, name) for name in files()}
    assert 0 < len(known) < 20
    processes = start_two(*command)
    while len(files()) < len(known) + 3 and processes[0].poll() is None:
        time.sleep(0.01)
    with gcs.outage(3):
        pass
    finish(*processes)
    assert len(files()) == 20 and len({len(gcs.content(bucket, name)) for name in files()}) == 1
    assert all(gcs.content(bucket, name).startswith(data) for name, data in known.items())
