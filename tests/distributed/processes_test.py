"""Joining as train.py does it: flags, the environment, real processes that end together."""

import contextlib
import os
import signal
import time

import child_runs
import jax
import pytest
from metadata_server import serving

import train
from deit_jax import distributed
from deit_jax.distributed.processes import differences
from deit_jax.errors import ConfigError

FLAGS = ["--config=configs/none.py", "--workdir=unused"]
SHORT = ("train.total_steps=6", "train.eval_every_steps=0", "train.checkpoint_every_steps=0")
LONG = ("train.total_steps=100000", "train.eval_every_steps=0", "train.log_every_steps=1")


def test_one_process_stays_alone(monkeypatch, capsys):
    connected = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: connected.append(options))
    monkeypatch.delenv("GCE_METADATA_IP", raising=False)
    with distributed.join() as processes:
        assert processes.place.processes == 1
        processes.agree("anything", {"a": 1})
    assert connected == []
    assert capsys.readouterr().err == "processes: 1 (nothing says that there are more)\n"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--process_id=1"], "must be set together"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], "must be 0 to 1"),
        (["--coordinator=h", "--num_processes=2", "--process_id=1"], "must be HOST:PORT, not 'h'"),
        (["--heartbeat_timeout_seconds=0"], "--heartbeat_timeout_seconds must be at least 1"),
        (["--join_timeout_seconds=0"], "--join_timeout_seconds must be at least 1"),
    ],
)
def test_incomplete_descriptions(capsys, flags, message):
    assert train.main([*FLAGS, *flags]) == 2
    assert message in capsys.readouterr().err


def test_every_process_of_a_difference_is_named_up_to_some():
    facts = [{"a": "1"}] * 9 + [{"a": "2"}]
    assert differences(facts) == ["a: 1 (process 0, 1, 2, 3, 4, 5 and 3 more), 2 (process 9)"]
    assert differences([{"a": "1"}] * 3) == []


def ends(processes, workdir):
    """[(exit status, last line of what it printed)], once all have ended."""
    found = []
    for number, process in enumerate(processes):
        process.join(timeout=120)
        lines = child_runs.log_file(workdir, number).read_text().splitlines()
        found.append((process.exitcode, lines))
    return found


def test_processes_with_different_configs_do_not_train(tmp_path):
    workdir = tmp_path / "run"
    started = child_runs.start_two(workdir, *SHORT, devices=1, one=("seed=1", "optim.beta1=0.8"))
    for status, lines in ends(started, workdir):
        assert status == 2
        assert lines[-4:-1] == [
            "error: the processes of this run differ:",
            "  config.optim.beta1: 0.9 (process 0), 0.8 (process 1)",
            "  config.seed: 0 (process 0), 1 (process 1)",
        ]
    assert not workdir.exists()


@pytest.mark.long
def test_a_mistake_of_one_process_is_told_by_all(tmp_path):
    workdir = tmp_path / "run"
    started = child_runs.start_two(workdir, *SHORT, devices=1, one=("optim.beta9=1",))
    (status, told), (own_status, own) = ends(started, workdir)
    assert (status, own_status) == (2, 2)
    assert own[-1].startswith("error: unknown key config.optim.beta9")
    assert told[-1].startswith("stopped: process 1 (")
    assert "ended: unknown key config.optim.beta9" in told[-1]


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_ends_with_a_sentence_when_one_is_killed(killed, tmp_path):
    workdir = tmp_path / "run"
    started = child_runs.start_two(workdir, *LONG, devices=1)
    while not (workdir / "metrics.jsonl").exists() and all(p.is_alive() for p in started):
        time.sleep(0.05)
    os.kill(started[killed].pid, signal.SIGKILL)
    start = time.monotonic()
    (status, lines) = ends(started, workdir)[1 - killed]
    # By the connection that closes; the heartbeat would take 100 s.
    assert time.monotonic() - start < 80
    assert status == 75
    assert lines[-1].startswith(f"stopped: process {killed} (")
    assert lines[-1].endswith("ended without a word; run the same command again on all")
    assert not any("Traceback" in line or "Check failure" in line for line in lines)


@pytest.mark.long
def test_four_workers_of_a_pod_find_each_other_by_metadata(tmp_path):
    """Real processes, connected by jax; the stand-in tells each its number."""
    workdir = tmp_path / "run"
    port = str(child_runs.free_port())
    attributes = [
        {"agent-worker-number": str(i), "worker-network-endpoints": ",".join(["127.0.0.1"] * 4)}
        for i in range(4)
    ]
    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(serving(known)) for known in attributes]
        started = [
            child_runs.start(
                workdir,
                *SHORT,
                environment={"GCE_METADATA_IP": address, "JAX_COORDINATOR_PORT": port},
                log=number,
            )
            for number, address in enumerate(addresses)
        ]
        for number, (status, lines) in enumerate(ends(started, workdir)):
            assert status == 0, lines
            assert lines[0] == (
                f"processes: 4, this is number {number} (TPU VM: its metadata server, worker "
                f"{number} of 4), process 0 at 127.0.0.1:{port}"
            )
    assert "in 4 process(es), mesh data=4" in child_runs.log_file(workdir, 0).read_text()


def test_a_refusal_names_what_would_work():
    with pytest.raises(ConfigError, match="under Kubernetes, Slurm or MPI set none"):
        with distributed.join(process_id=0):
            pass
