"""How processes find each other, from flags and from the environment; nothing is connected."""

import jax
import pytest

import train
from deit_jax import distributed
from deit_jax.errors import ConfigError

FLAGS = ["--config=configs/none.py", "--workdir=unused"]


@pytest.fixture
def asked(monkeypatch):
    """What jax.distributed would have been given."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_process_stays_alone(asked):
    distributed.initialize()
    assert asked == []


@pytest.mark.parametrize(
    "name, value",
    [("SLURM_NTASKS", "4"), ("OMPI_COMM_WORLD_SIZE", "2"), ("TPU_WORKER_HOSTNAMES", "a,b")],
)
def test_a_cluster_is_recognised(asked, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    distributed.initialize()
    assert asked[0]["coordinator_address"] is None


def test_flags_reach_the_processes(asked, capsys):
    """The config does not exist, so the run ends right after."""
    given = [
        "--coordinator=h:1",
        "--num_processes=2",
        "--process_id=1",
        "--heartbeat_timeout_seconds=17",
    ]
    assert train.main([*FLAGS, *given]) == 2
    assert asked == [
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
    "flags, said",
    [
        (["--process_id=1"], "must be set together"),
        (["--coordinator=h:1", "--num_processes=2", "--process_id=2"], "must be 0 to 1"),
        (["--heartbeat_timeout_seconds=0"], "at least 1"),
    ],
)
def test_incomplete_descriptions(asked, capsys, flags, said):
    assert train.main([*FLAGS, *flags]) == 2
    assert said in capsys.readouterr().err and not asked


def test_defaults_are_those_of_the_function(asked, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    distributed.initialize()
    assert train.main(FLAGS) == 2
    assert asked[0] == asked[1]
    with pytest.raises(ConfigError):
        distributed.initialize(process_id=0)


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
    tasks, nodes, gpus, expected, asked, monkeypatch
):
    told = {"SLURM_NTASKS": tasks, "SLURM_NNODES": nodes, "SLURM_GPUS_ON_NODE": gpus}
    present = {name: value for name, value in told.items() if value is not None}
    assert distributed.local_gpus(present) == expected
    for name, value in present.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert [options["local_device_ids"] for options in asked] == ([expected] if tasks else [])
