"""Runs whose workdir is a bucket: killed, damaged, doubled, cut off, in one process and two."""

import json
import random
import resource
import signal
import subprocess
import sys
import time

import child_runs
import numpy as np
import pytest
import tiny_runs
from child_runs import OVERRIDES, STEPS

from deit_jax import storage
from deit_jax.checkpoint import layout, read_variables
from deit_jax.errors import ConfigError
from deit_jax.storage import lease, process
from deit_jax.train import loop, replay


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A finished run's workdir on this machine; its compiled programs are shared by the others."""
    return child_runs.finish(tmp_path_factory.mktemp("runs") / "unbroken", *OVERRIDES)


@pytest.fixture
def environment(gcs, tmp_path, monkeypatch):
    """Of the child processes."""
    monkeypatch.setenv("BUCKET_LOGS", str(tmp_path))
    return gcs.environment() | {"BUCKET_LOGS": str(tmp_path)}


@pytest.fixture
def start(bucket, unbroken, environment):
    """Starts the run in the bucket; `.url` is its workdir, `.log()` what it printed."""

    def begin(*overrides, **options):
        cache = f"compilation_cache={unbroken / 'compilation_cache'}"
        options |= {"environment": environment}
        return child_runs.start(begin.url, *OVERRIDES, cache, *overrides, **options)

    begin.url = f"gs://{bucket}/run"
    begin.log = lambda: child_runs.log_file(begin.url).read_text()
    begin.steps = lambda: layout.steps_in(storage.path(begin.url) / "checkpoints")
    return begin


def leaves(workdir):
    """Shape, dtype and digest of everything in the last checkpoint."""
    return layout.read_description(storage.path(workdir) / "checkpoints" / str(STEPS)).leaves


def lines(workdir):
    text = (storage.path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same_run(workdir, unbroken):
    assert leaves(workdir) == leaves(unbroken)
    ours, theirs = read_variables(workdir)[0], read_variables(unbroken)[0]
    np.testing.assert_array_equal(
        ours["params"]["head"]["kernel"], theirs["params"]["head"]["kernel"]
    )
    assert [line["step"] for line in lines(workdir)] == [line["step"] for line in lines(unbroken)]
    for line, same in zip(lines(workdir), lines(unbroken), strict=True):
        for name in line.keys() & {"train/loss", "eval/class/top1"}:
            # Where a run resumes inside an interval, its first mean is of fewer steps.
            if line.get("train/averaged_steps") == same.get("train/averaged_steps"):
                assert line[name] == same[name]
    assert not layout.damaged_in(storage.path(workdir) / "checkpoints")


@pytest.mark.long
@pytest.mark.parametrize("kills", [2, 20])
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(
    gcs, bucket, start, unbroken, kills
):
    dice, left, finished, died_at = random.Random(kills), kills, 0, []
    while left or not finished:
        start.url = f"gs://{bucket}/run-{finished}"
        run = start()
        if left:
            wait_for_a_moment(run, gcs, bucket, dice)
            run.kill()
        run.join()
        if run.exitcode == -signal.SIGKILL:
            left -= 1
            died_at.append(max(start.steps(), default=0))
            continue
        assert run.exitcode == 0, start.log()
        finished += 1
        assert_same_run(start.url, unbroken)
    assert not list(child_runs.ROOT.glob("gs:*"))
    if kills > 10:
        assert len({step for step in died_at if 0 < step < STEPS}) >= 3, died_at


def wait_for_a_moment(run, gcs, bucket, dice):
    """Until so many more objects are there: in the middle of a save as likely as between two."""
    news, before = dice.randint(0, 80), len(gcs.requests)
    begun, deadline = len(gcs.names(bucket)), time.monotonic() + 60
    while run.is_alive() and time.monotonic() < deadline:
        written = sum("POST" in request for request in gcs.requests[before:])
        if written >= news and (len(gcs.names(bucket)) != begun or not news):
            time.sleep(dice.uniform(0, 0.2))
            return
        time.sleep(0.005)


@pytest.mark.long
def test_a_store_that_does_not_answer_for_a_while_costs_nothing_but_time(gcs, start, unbroken):
    run = start()
    for wanted in (2, 8):
        while run.is_alive() and max(start.steps(), default=0) < wanted:
            time.sleep(0.02)
        with gcs.outage(6):
            pass
    run.join()
    assert run.exitcode == 0 and gcs.refused > 4, start.log()
    assert "not saved" not in start.log() and "not written" not in start.log()
    assert_same_run(start.url, unbroken)


@pytest.mark.long
def test_two_processes_save_and_restore(gcs, bucket, environment, tmp_path):
    url = f"gs://{bucket}/two"
    options = ("train.total_steps=4", "train.checkpoint_every_steps=1", "train.eval_every_steps=4")
    mesh = ("mesh.fsdp=2", f"compilation_cache={tmp_path / 'cache'}")
    for stop in (2, 4):
        changed = (*options, *mesh, f"train.stop_at_step={stop}")
        processes = child_runs.start_two(url, *changed, devices=2, environment=environment)
        for number, one in enumerate(processes):
            one.join(timeout=240)
            assert one.exitcode == 0, child_runs.log_file(url, number).read_text()[-3000:]
    assert "resuming after step 2" in child_runs.log_file(url).read_text()
    assert [line["step"] for line in lines(url) if "eval/count" in line][-1] == 4
    assert read_variables(url)[0]["params"]
    assert any("ocdbt.process_1" in name for name in gcs.names(bucket))


def test_a_second_writer_is_refused_and_changes_nothing(gcs, bucket, compilation_cache):
    url = storage.path(f"gs://{bucket}/run")
    config = tiny_runs.tiny("quickstart.py:plain", compilation_cache)
    other = process.Process("pid 1 elsewhere", "another machine", 1, "1")
    held = lease.Lease(url / ".checkpoints.lock", renew_s=0.2, process=other)
    with pytest.raises(ConfigError, match="another process .pid 1 elsewhere. is training in gs://"):
        tiny_runs.train(config, url)
    assert gcs.names(bucket) == ["run/.checkpoints.lock"]
    held.confirm()
    held.release()


@pytest.mark.parametrize("name", ["no-such-bucket", "forbidden"])
def test_a_bucket_that_is_missing_or_not_ours_ends_the_start_at_once(gcs, name):
    gcs.forbidden.add("forbidden")
    before, used = len(gcs.requests), resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "train.py", "--config=configs/deit.py", f"--workdir=gs://{name}/run"],
        cwd=child_runs.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: --workdir=gs://{name}/run cannot be written (")
    assert run.stderr.count("\n") == 1 and "choose a bucket" in run.stderr
    # Of the processor, so that a busy machine does not count; nothing else waits.
    assert after.ru_utime - used.ru_utime < 5 and len(gcs.requests) - before < 5


@pytest.mark.parametrize("name", ["no-such-bucket", "forbidden"])
def test_what_a_recipe_names_in_such_a_bucket_ends_the_start_too(gcs, tmp_path, name):
    gcs.forbidden.add("forbidden")
    before = len(gcs.requests)
    for recipe, option, words in (
        ("plain", "init", "no such file|permission denied"),
        ("student", "teacher.init", "no such file|permission denied"),
        ("student", "teacher.labels", "has no labels.json|cannot be read .permission denied"),
        ("plain", "compilation_cache", "cannot be written .(no such object|permission denied)"),
    ):
        config = tiny_runs.tiny(f"quickstart.py:{recipe}", f"{option}=gs://{name}/it")
        with pytest.raises(ConfigError, match=f"gs://{name}/it.*({words})|({words}).*gs://{name}"):
            tiny_runs.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists() and len(gcs.requests) - before < 40


@pytest.mark.long
def test_everything_that_a_recipe_names_may_be_in_the_bucket(
    gcs, bucket, tiny_teacher, compilation_cache, monkeypatch
):
    """Teacher, labels, compiled programs, weights to start from, and the dump of a bad step."""
    tiny_runs.make_cheap(monkeypatch)
    url = f"gs://{bucket}"
    for name in storage.names_under(tiny_teacher):
        gcs.put(bucket, f"teacher/{name}", (tiny_teacher / name).read_bytes())
    cache = f"compilation_cache={url}/cache"
    student = lambda *more: tiny_runs.tiny("quickstart.py:student", "eval.agreement=false", *more)
    plain = lambda *more: tiny_runs.tiny("quickstart.py:plain", *more)
    live = student(cache, f"teacher.init={url}/teacher", f"teacher.record={url}/labels")
    tiny_runs.train(live, f"{url}/live")
    assert gcs.names(bucket, "cache/") and gcs.names(bucket, "labels/epoch-00000")
    tiny_runs.train(student(cache, f"teacher.labels={url}/labels"), f"{url}/stored")
    losses = [
        [line["train/loss"] for line in lines(f"{url}/{run}") if "train/loss" in line]
        for run in ("live", "stored")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    tiny_runs.train(plain(compilation_cache, f"init={url}/stored"), f"{url}/tuned")
    bad = plain(compilation_cache, "schedule.base_lr=1e25")
    with pytest.raises(loop.NonFiniteError):
        tiny_runs.train(bad, f"{url}/bad")
    (dump,) = {name.split("/")[1] for name in gcs.names(bucket, "bad/nonfinite-step-")}
    finite, _ = replay.replay(storage.path(f"{url}/bad/{dump}"))
    assert not finite and not list(child_runs.ROOT.glob("gs:*"))


@pytest.mark.long
def test_an_interrupted_run_has_what_the_workdir_page_lists(gcs, bucket, start, unbroken):
    """And a second start finds the compiled programs of the first in the bucket."""
    for stop in (4, 8):
        run = start(
            *(f"train.stop_at_step={stop}", "log.trackers=tensorboard", "train.eval_every_steps=4"),
            *("compilation_cache=", "profile=2:3"),
        )
        run.join()
        assert run.exitcode == 0, start.log()
    names = gcs.names(bucket, "run/")
    for part in ("config.json", "metrics.jsonl", "curves.png", "checkpoints/8/", "tensorboard/"):
        assert any(name.startswith(f"run/{part}") for name in names), part
    assert any(name.startswith("run/profile/") and name.endswith(".xplane.pb") for name in names)
    assert sum(name.startswith("run/tensorboard/events") for name in names) == 2
    assert not any(name.startswith("run/.") for name in names), "no lock and no trial are left"
    starts = [line for line in lines(start.url) if "start/programs" in line]
    assert [line["step"] for line in lines(start.url)] == [4, 4, 8, 8]
    # A start that resumes has programs of its own besides.
    assert starts[0]["start/programs_cached"] == 0 and starts[1]["start/programs_cached"] >= 5
