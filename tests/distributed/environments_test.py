"""How many processes, which one, and where process 0 is, by variables and metadata."""

import time

import jax
import pytest
from metadata_server import serving

from deit_jax import distributed
from deit_jax.distributed import metadata
from deit_jax.distributed.environments import ENVIRONMENTS, find_place
from deit_jax.errors import ConfigError

POD = {
    "agent-worker-number": "2",
    "worker-network-endpoints": "10.0.0.5,10.0.0.6,10.0.0.7,10.0.0.8",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nWORKER_ID: '2'\n",
}
SLICES = """ACCELERATOR_TYPE: 'v5litepod-16'
MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.5:8080'
MEGASCALE_NUM_SLICES: '2'
MEGASCALE_SLICE_ID: '1'
"""
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NNODES": "2",
    "SLURM_STEP_NODELIST": "node[003-004]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
PMI = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
POD_OF_A_JOBSET = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JOB_COMPLETION_INDEX": "1",
    "JAX_NUM_PROCESSES": "2",
    "JOBSET_NAME": "deit",
    "REPLICATED_JOB_NAME": "workers",
}
OLD_FORM = {"worker-network-endpoints": "a:0:10.0.0.5,b:1:10.0.0.6,c:2:10.0.0.7"}
FIRST = {"agent-worker-number": "0", "worker-network-endpoints": "10.0.0.5"}
ADDRESSES = {"TPU_PROCESS_ADDRESSES": "10.0.0.1:8471,10.0.0.2:8471", "TPU_WORKER_ID": "0"}
LOCALHOST = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
INDEXED = {"KUBERNETES_SERVICE_HOST": "k", "JOB_COMPLETION_INDEX": "1"}
GKE = {"TPU_WORKER_HOSTNAMES": "t-0.s,t-1.s", "TPU_WORKER_ID": "1"}
MEGASCALE = {
    "MEGASCALE_NUM_SLICES": "3",
    "MEGASCALE_SLICE_ID": "2",
    "MEGASCALE_COORDINATOR_ADDRESS": "t-0-0.s:8080",
}
ADDRESSED = {
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
    "JAX_COORDINATOR_ADDRESS": "head:1234",
}
ALONE = (1, 0, "")


def place(variables, attributes=None):
    return find_place(variables, (attributes or {}).get)


@pytest.mark.parametrize(
    "variables, attributes, expected",
    [
        ({}, {}, ALONE),
        # TPU VMs
        ({}, POD, (4, 2, "10.0.0.5:8482")),
        ({}, POD | OLD_FORM, (3, 2, "10.0.0.5:8482")),
        ({}, FIRST, ALONE),
        ({}, POD | {"tpu-env": SLICES}, (8, 6, "10.0.0.5:8482")),
        ({}, FIRST | {"tpu-env": SLICES}, (2, 1, "10.0.0.5:8482")),
        ({"TPU_PROCESS_BOUNDS": "1,1,1"}, POD, ALONE),
        ({"JAX_COORDINATOR_PORT": "99"}, POD, (4, 2, "10.0.0.5:99")),
        ({}, {"worker-network-endpoints": "a,b"}, ALONE),
        # Kubernetes and Kaggle
        (GKE, {}, (2, 1, "t-0.s:8482")),
        (GKE | MEGASCALE, {}, (6, 5, "t-0-0.s:8482")),
        (MEGASCALE | LOCALHOST, {}, (3, 2, "t-0-0.s:8482")),
        (ADDRESSES, {}, (2, 0, "10.0.0.1:8482")),
        ({"TPU_PROCESS_ADDRESSES": "local"}, {}, ALONE),
        (LOCALHOST, {}, ALONE),
        (GKE | INDEXED, {}, (2, 1, "t-0.s:8482")),
        (POD_OF_A_JOBSET, {}, (2, 1, "deit-workers-0-0.deit:8482")),
        (POD_OF_A_JOBSET | {"JAX_COORDINATOR_ADDRESS": "head:1"}, {}, (2, 1, "head:1")),
        (POD_OF_A_JOBSET | {"JAX_NUM_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"}, {}, ALONE),
        ({"KUBERNETES_SERVICE_HOST": "k"}, {}, ALONE),
        (ADDRESSED, {}, (3, 2, "head:1234")),
        # Slurm
        (SLURM, {}, (2, 1, "node003:61441")),
        (SLURM | {"SLURM_STEP_NODELIST": "a1,b[2-3]"}, {}, (2, 1, "a1:61441")),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {}, ALONE),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, {}, ALONE),
        # MPI
        (OPEN_MPI, {}, (8, 5, "10.96.0.1:62624")),
        (SLURM | OPEN_MPI, {}, (8, 5, "10.96.0.1:62624")),
        (PMI, {}, (4, 1, "127.0.0.1:8482")),
        (PMI | {"MPI_LOCALNRANKS": "2", "JAX_COORDINATOR_ADDRESS": "n1:7"}, {}, (4, 1, "n1:7")),
    ],
)  # fmt: skip
def test_who_is_where(variables, attributes, expected):
    found = place(variables, attributes)
    assert found[:3] == expected
    assert "\n" not in str(found) and str(found).startswith(f"processes: {expected[0]}")


def test_the_port_of_open_mpi_is_that_of_jax(monkeypatch):
    from jax._src.clusters.ompi_cluster import OmpiCluster
    from jax._src.clusters.slurm_cluster import SlurmCluster

    for cluster, variables in ((OmpiCluster, OPEN_MPI), (SlurmCluster, SLURM)):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        theirs = cluster.get_coordinator_address(timeout_secs=1, override_coordinator_port=None)
        assert place(variables).coordinator == theirs


@pytest.mark.parametrize(
    "variables, attributes, message",
    [
        (POD_OF_A_JOBSET | {"JAX_NUM_PROCESSES": ""}, {}, "JAX_NUM_PROCESSES must be a number"),
        ({k: v for k, v in POD_OF_A_JOBSET.items() if k[:3] != "JAX"}, {}, "set JAX_NUM_PROCESSES"),
        (POD_OF_A_JOBSET | {"JOB_COMPLETION_INDEX": "2"}, {}, "go from 0 to 1"),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": ""}, {}, "JAX_COORDINATOR_ADDRESS=HOST:PORT"),
        (PMI | {"MPI_LOCALNRANKS": "2"}, {}, "nothing says where process 0 is"),
        ({"MEGASCALE_NUM_SLICES": "2"}, POD, "MEGASCALE_COORDINATOR_ADDRESS"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, {}, "TPU_WORKER_ID must be a number, not None"),
        (SLURM | {"SLURM_NTASKS": "many"}, {}, "SLURM_NTASKS must be a number, not 'many'"),
    ],
)
def test_contradictions_are_said(variables, attributes, message):
    with pytest.raises(ConfigError, match=message):
        place(variables, attributes)


@pytest.mark.parametrize(
    "changed, gpus",
    [
        ({}, None),  # one task a node: all GPUs
        ({"SLURM_NNODES": "1", "SLURM_LOCALID": "1"}, [1]),
        ({"SLURM_NNODES": "1", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, [1]),
        ({"SLURM_NNODES": "1", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "3"}, None),
    ],
)
def test_gpus_of_a_slurm_task(changed, gpus):
    assert place(SLURM | changed).local_gpus == gpus


def test_an_environment_of_ones_own_is_a_function_and_a_line(monkeypatch):
    own = lambda variables, metadata: (
        find_place(ADDRESSED, metadata) if "MINE" in variables else None
    )
    monkeypatch.setitem(ENVIRONMENTS, "mine", own)
    assert place({"MINE": "1"}).processes == 3 and place({}).processes == 1


def test_the_metadata_server_decides_within_a_second(monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # as jax sets it where it finds no TPU
    decide = lambda: find_place({}, metadata.attribute)
    for attributes, delay, processes in ((POD, 0, 4), (FIRST, 0, 1), ({}, 0, 1), (POD, 3, 1)):
        with serving(attributes, delay_seconds=delay) as address:
            monkeypatch.setenv("GCE_METADATA_IP", address)
            start = time.monotonic()
            assert decide().processes == processes
            assert time.monotonic() - start < 1
    # The server is gone.
    assert decide().processes == 1


def test_elsewhere_nobody_is_asked(monkeypatch):
    monkeypatch.delenv("GCE_METADATA_IP", raising=False)
    monkeypatch.setattr(metadata, "ADDRESS", "192.0.2.1")
    start = time.monotonic()
    assert metadata.attribute("agent-worker-number") is None
    assert time.monotonic() - start < 0.2


def test_several_processes_that_have_not_joined_are_refused(monkeypatch):
    distributed.check_joined()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match="jax sees 4 processes"):
        distributed.check_joined()
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    distributed.check_joined()
