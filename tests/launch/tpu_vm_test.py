"""scripts/tpu_vm.sh against a stand-in for gcloud, under which commands and processes are real."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from child_runs import TINY
from launch.world import ROOT

from deit_jax import storage
from deit_jax.checkpoint import layout

RUN = ("--config=configs/deit.py:s", "--workdir=gs://bucket/s")


def launched(cloud, *options: str, run=RUN) -> None:
    cloud("create", "deit", "--type=v5litepod-16", "--zone=us-west4-a", *options)
    cloud("setup", "deit")
    cloud("run", "deit", *run)


LAUNCH = ["create", "scp", "setup", "start"]
DONE = {"all": {"print": ["last line"], "status": 0}}


def test_a_run_that_ends_well_is_deleted_at_the_end(cloud):
    cloud = cloud(workers=4, runs=[{"all": {"print": ["step 1/2", "last line"], "status": 0}}])
    launched(cloud)
    output = cloud("watch", "deit")
    assert "step 1/2\nlast line\n" in output
    assert cloud.verbs() == [*LAUNCH, "delete"]
    assert len(cloud.calls("training")) == 4
    assert cloud.nodes() == {}


HARD = pytest.param(True, marks=pytest.mark.long, id="without notice")


@pytest.mark.parametrize("hard", [pytest.param(False, id="SIGTERM"), HARD])
def test_two_preemptions_lose_neither_the_run_nor_its_stdout(cloud, hard):
    lives = [{"preempt": 1, "hard": hard}, {"preempt": 1, "hard": hard}]
    cloud = cloud(workers=2, lives=lives, runs=[{}, {}, DONE])
    launched(cloud, "--spot")
    output = cloud("watch", "deit")
    assert cloud.verbs() == [*LAUNCH, "delete", *LAUNCH, "delete", *LAUNCH, "delete"]
    for line in ("start 0 of worker 0", "start 1 of worker 0", "last line"):
        assert output.count(f"{line}\n") == 1, output
    for step in (0, 1):
        line = f"stopped by signal after saving step {step}\n"
        assert output.count(line) == (not hard), output
    creations = [c for c in cloud.calls() if c["command"].endswith("create")]
    assert all(c == creations[0] for c in creations) and "--spot" in creations[0]["flags"]
    trained = [t["arguments"] for t in cloud.calls("training")]
    assert trained == [["-u", "train.py", *RUN]] * 6
    assert "start 1 of worker 1\n" in cloud("logs", "deit", "1")


def test_ssh_and_scp_that_fail_three_times_cost_only_time(cloud):
    cloud = cloud(fail={"ssh": 3, "scp": 3}, runs=[DONE])
    launched(cloud)
    assert cloud("watch", "deit").count("last line\n") == 1
    # What follows a failure is the same call again.
    assert cloud.verbs() == ["create", *["scp"] * 4, *["setup"] * 4, "start", "delete"]
    assert len(cloud.calls("training")) == 1


@pytest.mark.long
def test_ssh_that_fails_while_watching_changes_nothing(cloud):
    cloud = cloud(runs=[DONE])
    launched(cloud)
    cloud.plan(runs=[DONE], fail={"ssh": 6})
    output = cloud("watch", "deit")
    assert output.count("not all workers answer") == 3 and "last line\n" in output
    assert cloud.verbs() == [*LAUNCH, "delete"]


def test_status_2_is_not_retried_and_the_machine_is_kept(cloud):
    cloud = cloud(runs=[{"all": {"print": ["error: unknown model 'deit_x'"], "status": 2}}])
    launched(cloud)
    output = cloud("watch", "deit", status=2)
    assert "error: unknown model 'deit_x'\n" in output
    assert "worker 0 of deit ended with status 2" in output
    assert "costs money until: scripts/tpu_vm.sh delete deit" in output
    assert cloud.verbs() == LAUNCH
    # After mending, on the same machine.
    cloud.plan(runs=[{}, DONE])
    cloud("run", "deit", *RUN)
    cloud("watch", "deit")
    assert cloud.verbs() == [*LAUNCH, "start", "delete"]


@pytest.mark.long
def test_status_75_runs_again_on_the_same_machine(cloud):
    cloud = cloud(runs=[{"all": {"status": 75}}, {"all": {"status": 75}}, DONE])
    launched(cloud)
    assert cloud("watch", "deit").count("stopped by SIGTERM (75)") == 2
    assert cloud.verbs() == [*LAUNCH, "start", "start", "delete"]


@pytest.mark.long
def test_one_worker_that_fails_is_named(cloud):
    failing = {"2": {"print": ["stopped: the loss is not finite"], "status": 1}}
    cloud = cloud(workers=4, runs=[failing])
    launched(cloud)
    output = cloud("watch", "deit", status=1)
    assert "stopped: the loss is not finite\n" in output
    assert "worker 2 of deit ended with status 1" in output
    assert cloud.verbs() == LAUNCH


@pytest.mark.long
def test_a_worker_that_fails_because_its_partner_was_preempted_is_no_failure(cloud):
    partner = {"0": {"print": ["lost worker 1"], "status": 1}, "1": {}}
    cloud = cloud(workers=2, runs=[partner, DONE], lives=[{"preempt": 1, "hard": True}])
    launched(cloud)
    cloud("watch", "deit")
    assert cloud.verbs() == [*LAUNCH, "delete", *LAUNCH, "delete"]


@pytest.mark.long
def test_a_worker_that_was_killed_is_a_failure(cloud):
    cloud = cloud(runs=[{}])
    launched(cloud)
    cloud.end()
    assert "worker 0 of deit ended with status killed" in cloud("watch", "deit", status=1)


@pytest.mark.long
def test_a_machine_that_rebooted_runs_again(cloud):
    cloud = cloud(workers=2, lives=[{"reboot": 1, "hard": True}], runs=[{}, DONE])
    launched(cloud)
    cloud("watch", "deit")
    assert cloud.verbs() == [*LAUNCH, "start", "delete"]


ODD = (
    "--config.x=a b",
    '--config.quote=it\'s "here"',
    "--config.shell=$HOME `id` $(id) \\ * ; & | < > !",
    "--config.line=1\n2",
    "--config.empty=",
    "",
    "--config.NODE=NODE",
    "--config.name=été",
)


def test_arguments_and_variables_arrive_intact_after_a_preemption_too(cloud):
    cloud = cloud(workers=2, lives=[{"preempt": 1}], runs=[{}, DONE])
    launched(cloud, run=("--env=KEY=a 'secret' $HOME", *RUN, *ODD))
    cloud("watch", "deit")
    trained = cloud.calls("training")
    assert len(trained) == 4
    for call in trained:
        assert call["arguments"] == ["-u", "train.py", *RUN, *ODD]
        assert call["key"] == "a 'secret' $HOME"
    saved = cloud.checkout / "runs/tpu_vm/deit/arguments"
    assert saved.stat().st_mode & 0o077 == 0


@pytest.mark.long
def test_a_queued_resource_is_waited_for(cloud):
    waits = ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING"]
    cloud = cloud(runs=[DONE], describe=["WAITING_FOR_RESOURCES", *waits])
    cloud("create", "deit", "--type=v6e-8", "--zone=z", "--queued", "--spot")
    assert "this sets it up and runs: scripts/tpu_vm.sh watch deit" in cloud("run", "deit", *RUN)
    output = cloud("watch", "deit")
    assert output.count("deit is WAITING_FOR_RESOURCES") == 1
    assert cloud.verbs() == [*LAUNCH, "delete"]
    first, *_, last = (c for c in cloud.calls() if c["command"].split()[-1] in ("create", "delete"))
    assert first["command"] == "compute tpus queued-resources create"
    assert first["flags"]["--node-id"] == "deit" and "--spot" in first["flags"]
    assert last["command"] == "compute tpus queued-resources delete"


@pytest.mark.long
def test_slices_are_nodes_of_one_queued_resource(cloud):
    cloud = cloud(workers=2, runs=[{}, DONE], lives=[{"preempt": 1}])
    launched(cloud, "--slices=2", "--spot")
    assert_shows(cloud("watch", "deit"), "multislice")
    one = ["create", "scp", "setup", "scp", "setup", "start", "start"]
    assert cloud.verbs() == [*one, "delete", *one, "delete"]
    creation = next(c for c in cloud.calls() if c["command"].endswith("create"))
    assert creation["flags"]["--node-count"] == "2"
    assert creation["flags"]["--node-prefix"] == "deit"
    assert len(cloud.calls("training")) == 8
    assert "deit-1-worker-1.log <==" in cloud("logs", "deit", "1")


@pytest.mark.long
def test_an_installation_is_tried_again_and_then_stops_the_launch(cloud):
    flaky, broken = cloud(setup=2, runs=[DONE]), cloud(setup=99)
    launched(flaky)
    flaky("watch", "deit")
    installs = [call["arguments"] for call in flaky.calls("uv")]
    assert installs[0] == ["venv", "--python", "3.12", ".venv"]
    assert len(installs) == 4 and installs[-1][-1] == ".[data,tpu,gcs]"

    broken("create", "deit", "--type=v4-8", "--zone=z")
    output = broken("setup", "deit", status=1)
    assert "setup failed on worker 0:" in output and "Failed to fetch: libtpu" in output
    broken("run", "deit", *RUN)
    assert "setup failed; deit is kept" in broken("watch", "deit", status=1)
    assert "start" not in broken.verbs() and "delete" not in broken.verbs()


@pytest.mark.long
def test_logs_after_a_preemption_that_nobody_watched(cloud):
    cloud = cloud(lives=[{"preempt": 0}])
    launched(cloud)
    until = time.monotonic() + 30
    while "saving step 0" not in (output := cloud("logs", "deit")):
        assert time.monotonic() < until, output
    assert "start 0 of worker 0\nstopped by signal after saving step 0\n" in output
    assert "create" in cloud.verbs() and "delete" not in cloud.verbs()


@pytest.mark.long
def test_ctrl_c_ends_the_watch_and_leaves_the_run(cloud):
    cloud = cloud(runs=[{}])
    launched(cloud)
    watch = cloud.start("watch", "deit")
    with watch.stdout:
        for line in watch.stdout:
            if "start 0 of worker 0" in line:
                os.killpg(watch.pid, signal.SIGINT)
    assert watch.wait(20) == 130 and "the run continues" in line
    assert cloud.verbs() == LAUNCH
    assert "start 0 of worker 0\n" in cloud("logs", "deit")
    # It still runs: asked to, it saves and ends, and then the watch runs it again.
    cloud.plan(runs=[{}, DONE])
    for pid in cloud.processes():
        os.kill(pid, signal.SIGTERM)
    assert "saving step 0\n" in cloud("watch", "deit")
    assert cloud.verbs() == [*LAUNCH, "start", "delete"]


@pytest.mark.long
def test_no_capacity_is_asked_for_again_and_no_permission_is_not(cloud):
    full = "There is no more capacity in the zone"
    cloud, forbidden = cloud(create=[full] * 3, runs=[DONE]), cloud(create=["PERMISSION_DENIED"])
    assert full in cloud("create", "deit", "--type=v4-8", "--zone=z", status=1)
    cloud("run", "deit", *RUN)
    assert cloud("watch", "deit").count("not created: ERROR: (gcloud.compute.tpus.tpu-vm") == 2
    assert cloud.verbs() == [*["create"] * 4, "scp", "setup", "start", "delete"]
    forbidden("create", "deit", "--type=v4-8", "--zone=z", status=1)
    forbidden("run", "deit", *RUN)
    forbidden.plan(create=["", "PERMISSION_DENIED"])
    assert "PERMISSION_DENIED" in forbidden("watch", "deit", status=1)


@pytest.mark.long
def test_a_state_that_is_not_known_deletes_nothing(cloud):
    cloud = cloud(runs=[DONE])
    launched(cloud)
    unknown = ["ERROR 503 backend", "ERROR 503 backend", "REPAIRING"]
    cloud.plan(runs=[DONE], describe=["", "", *unknown])
    output = cloud("watch", "deit")
    assert output.count("deit is UNKNOWN") == 1 and "deit is REPAIRING" in output
    assert cloud.verbs() == [*LAUNCH, "delete"]


@pytest.mark.long
def test_a_deletion_is_tried_again(cloud):
    cloud = cloud(runs=[DONE], fail={"delete": 2})
    launched(cloud)
    cloud("watch", "deit")
    assert cloud.verbs() == [*LAUNCH, *["delete"] * 3] and cloud.nodes() == {}


@pytest.mark.long
def test_a_second_run_ends_the_first(cloud):
    cloud = cloud(runs=[{}, DONE])
    launched(cloud)
    cloud("run", "deit", *RUN, "--config.seed=1")
    output = cloud("watch", "deit") + cloud("logs", "deit")
    assert "stopped by signal after saving step 0\n" in output
    assert [t["arguments"][-1] for t in cloud.calls("training")] == [RUN[-1], "--config.seed=1"]


def assert_shows(output: str, page: str) -> None:
    """The screen in a page of docs/launch is that of a run, but for its numbers."""
    text = (ROOT / f"docs/launch/{page}.md").read_text()
    (screen,) = re.findall(r"^```text\n(.*?)^```", text, re.M | re.S)
    plain = lambda lines: [re.sub(r"[\d:.,]+", "#", line).split() for line in lines]
    left = iter(plain(output.splitlines()))
    for line in plain(line for line in screen.splitlines() if line != "..."):
        assert line in left, f"{page}: {line}"


@pytest.mark.long
def test_a_real_run_with_two_preemptions_ends_with_the_same_bits(cloud, gcs, bucket, tmp_path):
    """Its checkpoints, metrics and curves are in the bucket."""
    options = ("train.total_steps=600", "train.log_every_steps=20", *TINY)
    options += ("train.checkpoint_every_steps=50", "train.eval_every_steps=600")
    small = ("--config=configs/quickstart.py:plain", *(f"--config.{t}" for t in options))
    lives = [{"preempt": 0}, {"preempt": 0, "hard": True}]
    cloud = cloud(variables=gcs.environment(), real=sys.executable, lives=lives)
    launched(cloud, "--spot", run=(*small, f"--workdir=gs://{bucket}/small"))
    output = cloud("watch", "deit", timeout=500)
    assert cloud.verbs() == [*LAUNCH, "delete", *LAUNCH, "delete", *LAUNCH, "delete"]
    for page in ("tpu_vm", "gke", "slurm", "gpu"):
        assert_shows(output.replace(bucket, "bucket"), page)
    command = [sys.executable, "train.py", *small, f"--workdir={tmp_path}/whole"]
    subprocess.run(command, cwd=ROOT, check=True, env=cloud.environment)
    whole, resumed = tmp_path / "whole", storage.path(f"gs://{bucket}/small")
    assert (resumed / "curves.png").exists()
    last = [(run / "metrics.jsonl").read_text().splitlines()[-1] for run in (whole, resumed)]
    last = [json.loads(line) | {"time": None} for line in last]
    assert last[0] == last[1]
    arrays = [layout.read_description(run / "checkpoints/600").leaves for run in (whole, resumed)]
    assert arrays[0] == arrays[1]
