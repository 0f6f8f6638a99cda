"""How processes find each other, from flags and from the environment; nothing is connected."""

import jax
import pytest

import train
from deit_jax.distributed import join
from deit_jax.errors import ConfigError

FLAGS = ["--config=configs/none.py", "--workdir=unused"]


@pytest.fixture
def calls(monkeypatch):
    """What jax.distributed would have been given."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_process_stays_alone(calls):
    join.initialize()
    assert calls == []


@pytest.mark.parametrize(
    "name, value",
    [("SLURM_NTASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "2"), ("TPU_WORKER_HOSTNAMES", "a,b")],
)
def test_a_cluster_is_recognized(calls, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    join.initialize()
    assert calls[0]["coordinator_address"] is None


def test_flags_reach_the_processes(calls, capsys):
    """The config does not exist, so the run ends right after."""
    given = [
        "--coordinator=h:1",
        "--num_processes=2",
        "--process_id=1",
        "--heartbeat_timeout_seconds=17",
    ]
    assert train.main([*FLAGS, *given]) == 2
    assert calls == [
        {
            "coordinator_address": "h:1",
            "num_processes": 2,
            "process_id": 1,
            "local_device_ids": None,
            "heartbeat_timeout_seconds": 17,
        }
    ]
    assert "no config file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--process_id=1"], "must be set together"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], "must be 0 to 1"),
        (["--heartbeat_timeout_seconds=0"], "at least 1"),
    ],
)
def test_incomplete_descriptions(calls, capsys, flags, message):
    assert train.main([*FLAGS, *flags]) == 2
    assert message in capsys.readouterr().err and not calls


def test_defaults_are_those_of_the_function(calls, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    join.initialize()
    assert train.main(FLAGS) == 2
    assert calls[0] == calls[1]
    with pytest.raises(ConfigError):
        join.initialize(process_id=0)


@pytest.mark.parametrize(
    "tasks, nodes, gpus, expected",
    [
        ("2", "2", "8", list(range(8))),  # one task a node: all of its GPUs
        ("16", "2", "8", None),  # one a GPU: jax's own choice
        ("2", "2", None, None),  # no GPUs
        (None, None, None, None),  # no Slurm
    ],
)
def test_the_only_slurm_task_of_a_node_takes_all_gpus(
    tasks, nodes, gpus, expected, calls, monkeypatch
):
    environment = {"SLURM_NTASKS": tasks, "SLURM_NNODES": nodes, "SLURM_GPUS_ON_NODE": gpus}
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert join.local_gpus() == expected
    join.initialize()
    assert [options["local_device_ids"] for options in calls] == ([expected] if tasks else [])
