"""How many processes a run has, which of them this is and where process 0 is: the environments.

An environment is a function `(variables, metadata) -> Place, or None where it is not this
environment`. `variables` are those of the process; `metadata(key)` asks the metadata server of a
TPU VM for an attribute, None where there is none. They only look: nothing is connected.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from deit_jax.errors import ConfigError

Variables = Mapping[str, str]
Metadata = Callable[[str], str | None]


class Place(NamedTuple):
    """This process among those of the run; `str(place)` is the line that is printed.

    Attributes:
      processes: of the run.
      process: number of this one, from 0.
      coordinator: `host:port` of process 0; "" for a run of one process.
      why: what says so.
      hosts: of all processes by number, where the environment names them, else ().
      local_gpus: the GPUs that this process takes; None for all that it sees.
    """

    processes: int
    process: int
    coordinator: str
    why: str
    hosts: tuple[str, ...] = ()
    local_gpus: list[int] | None = None

    def __str__(self) -> str:
        if self.processes == 1:
            return f"processes: 1 ({self.why})"
        return (
            f"processes: {self.processes}, this is number {self.process} ({self.why}), "
            f"process 0 at {self.coordinator}"
        )


def alone(why: str) -> Place:
    """The place of a process that is the whole run."""
    return Place(1, 0, "", why)


def _addressed(variables: Variables, metadata: Metadata) -> Place | None:
    """`JAX_NUM_PROCESSES`, `JAX_PROCESS_ID` and `JAX_COORDINATOR_ADDRESS` (Kubeflow Trainer)."""
    if not {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} <= variables.keys():
        return None
    count, number = _number(variables, "JAX_NUM_PROCESSES"), _number(variables, "JAX_PROCESS_ID")
    return _place(variables, count, number, "", "variables JAX_NUM_PROCESSES and JAX_PROCESS_ID")


def _gke_tpu(variables: Variables, metadata: Metadata) -> Place | None:
    """TPUs on Kubernetes, and Kaggle's, whose `TPU_PROCESS_ADDRESSES` is `local`."""
    name = next(
        (n for n in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES") if n in variables), ""
    )
    workers = [entry for entry in variables.get(name, "").split(",") if entry]
    if not workers:
        return None
    hosts = tuple(_host(entry) for entry in workers)
    slices = _slices(variables, lambda key: None)
    if len(hosts) * slices[0] == 1:
        return alone(f"{name}={variables[name]}")
    return _tpu_place(variables, hosts, _number(variables, "TPU_WORKER_ID"), slices, name)


def _tpu_vm(variables: Variables, metadata: Metadata) -> Place | None:
    """TPU VMs: the metadata server tells the workers and this worker's number."""
    bounds = variables.get("TPU_PROCESS_BOUNDS")
    if bounds and set(bounds.split(",")) == {"1"}:
        return alone(f"TPU_PROCESS_BOUNDS={bounds}")
    worker = metadata("agent-worker-number")
    endpoints = metadata("worker-network-endpoints") if worker else None
    if not worker or not endpoints:
        return None
    # An endpoint is a host, or in an older form name:id:host.
    hosts = tuple(entry.strip().split(":")[-1] for entry in endpoints.split(","))
    slices = _slices(variables, metadata)
    number = _number({"agent-worker-number": worker}, "agent-worker-number")
    if len(hosts) * slices[0] == 1:
        return alone("TPU VM: its metadata server names one worker")
    return _tpu_place(variables, hosts, number, slices, "TPU VM: its metadata server")


def _mpi(variables: Variables, metadata: Metadata) -> Place | None:
    """Open MPI; before Slurm, whose variables its daemons hand on."""
    count = _number(variables, "OMPI_COMM_WORLD_SIZE", 1)
    if "OMPI_COMM_WORLD_RANK" not in variables and count == 1:
        return None
    rank = _number(variables, "OMPI_COMM_WORLD_RANK")
    # As jax: of "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911" the first address, and a port
    # from the job's number.
    uri = variables.get("OMPI_MCA_orte_hnp_uri", "")
    launcher = re.search(r"^(\d+)\..*?tcp://(.+?)[,:]", uri)
    address = f"{launcher[2]}:{_port(int(launcher[1]) // 2**12)}" if launcher else ""
    if not address and _number(variables, "OMPI_COMM_WORLD_LOCAL_SIZE", 0) == count:
        address = "127.0.0.1"
    local = _one_gpu(variables, _number(variables, "OMPI_COMM_WORLD_LOCAL_RANK", 0))
    return _place(variables, count, rank, address, f"Open MPI, rank {rank} of {count}", gpus=local)


def _slurm(variables: Variables, metadata: Metadata) -> Place | None:
    """Slurm: one process a GPU, or one a node with all of its GPUs."""
    count = _number(variables, "SLURM_NTASKS", 1)
    if "SLURM_JOB_ID" not in variables and count == 1:
        return None
    if not {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= variables.keys():
        return alone(f"Slurm, {count} task(s), but this process was not started by srun")
    rank, job = _number(variables, "SLURM_PROCID"), _number(variables, "SLURM_JOB_ID", 0)
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", variables["SLURM_STEP_NODELIST"])
    address = f"{first[1]}{first[2] or ''}:{_port(job)}" if first else ""
    nodes = _number(variables, "SLURM_STEP_NUM_NODES", _number(variables, "SLURM_NNODES", 1))
    local = None if nodes == count else _one_gpu(variables, _number(variables, "SLURM_LOCALID", 0))
    return _place(variables, count, rank, address, f"Slurm, task {rank} of {count}", gpus=local)


def _pmi(variables: Variables, metadata: Metadata) -> Place | None:
    """MPICH, Intel MPI and Cray: the process manager's variables."""
    count = _number(variables, "PMI_SIZE", 1)
    if "PMI_RANK" not in variables:
        return None
    rank = _number(variables, "PMI_RANK")
    local, here = (_number(variables, f"MPI_LOCAL{name}", 0) for name in ("RANKID", "NRANKS"))
    address = "127.0.0.1" if here == count else ""
    gpus = _one_gpu(variables, local) if here > 1 else None
    return _place(variables, count, rank, address, f"PMI, rank {rank} of {count}", gpus=gpus)


def _kubernetes(variables: Variables, metadata: Metadata) -> Place | None:
    """An indexed Job or JobSet on Kubernetes, one process a pod.

    The index is Kubernetes' own; the manifest passes the other variables to its pods: how many
    there are, and the names of the JobSet and of its replicated job, from which the stable host
    name of pod 0 follows (or `JAX_COORDINATOR_ADDRESS`).
    """
    if not {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= variables.keys():
        return None
    number = _number(variables, "JOB_COMPLETION_INDEX")
    if "JAX_NUM_PROCESSES" not in variables:
        raise ConfigError(
            f"this pod is number {number} of a Kubernetes job, and nothing says how many there "
            "are; set JAX_NUM_PROCESSES in the manifest, to 1 for a job of one pod, or give "
            "--coordinator, --num_processes and --process_id"
        )
    count = _number(variables, "JAX_NUM_PROCESSES")
    jobset, job = variables.get("JOBSET_NAME"), variables.get("REPLICATED_JOB_NAME")
    address = f"{jobset}-{job}-0-0.{jobset}" if jobset and job else ""
    return _place(variables, count, number, address, f"Kubernetes, pod {number} of {count}")


# From the most particular to the least; the first that answers decides. A new environment is a
# function and one line.
ENVIRONMENTS: dict[str, Callable[[Variables, Metadata], Place | None]] = {
    "addressed": _addressed,
    "gke_tpu": _gke_tpu,
    "tpu_vm": _tpu_vm,
    "mpi": _mpi,
    "slurm": _slurm,
    "pmi": _pmi,
    "kubernetes": _kubernetes,
}

# Where an environment names process 0's host alone; the same as jax's.
PORT = 8482


def find_place(variables: Variables, metadata: Metadata) -> Place:
    """The place of this process by its environment; alone where no environment is recognized.

    `JAX_COORDINATOR_ADDRESS` and `JAX_COORDINATOR_PORT` override where process 0 is.

    Raises:
      ConfigError: the environment contradicts itself or leaves out what is needed.
    """
    for environment in ENVIRONMENTS.values():
        place = environment(variables, metadata)
        if place is not None:
            return place
    return alone("nothing says that there are more")


def _place(
    variables: Variables,
    count: int,
    number: int,
    address: str,
    why: str,
    *,
    hosts: tuple[str, ...] = (),
    gpus: list[int] | None = None,
) -> Place:
    """The place, alone if there is one process; `address` is `host[:port]`, "" if unknown."""
    if count == 1 and number == 0:
        return alone(why)
    if not 0 <= number < count:
        raise ConfigError(
            f"{why}: process {number} of {count}; the numbers of {count} processes go from 0 to "
            f"{count - 1}"
        )
    address = variables.get("JAX_COORDINATOR_ADDRESS") or address
    if not address:
        raise ConfigError(
            f"{why}: nothing says where process 0 is; set JAX_COORDINATOR_ADDRESS=HOST:PORT for "
            "all processes, or --coordinator, --num_processes and --process_id"
        )
    host, port = _host(address), address.removeprefix(_host(address)).lstrip(":")
    port = variables.get("JAX_COORDINATOR_PORT") or port or PORT
    return Place(count, number, f"{host}:{port}", why, hosts, gpus)


def _tpu_place(
    variables: Variables,
    hosts: tuple[str, ...],
    worker: int,
    slices: tuple[int, int, str],
    source: str,
) -> Place:
    """One process a host: those of slice 0 first, as their devices are numbered."""
    count, number, coordinator = slices
    why = f"{source}, worker {worker} of {len(hosts)}"
    if count > 1:
        why += f" in slice {number} of {count}"
    address = _host(coordinator) if coordinator else hosts[0]
    known = hosts if count == 1 else ()
    number = number * len(hosts) + worker
    return _place(variables, count * len(hosts), number, address, why, hosts=known)


def _slices(variables: Variables, metadata: Metadata) -> tuple[int, int, str]:
    """(number of slices, number of this one, host of slice 0's first worker), by MEGASCALE_*."""
    names = ("MEGASCALE_NUM_SLICES", "MEGASCALE_SLICE_ID", "MEGASCALE_COORDINATOR_ADDRESS")
    values = dict(variables)
    if names[0] not in values:
        # Lines such as  MEGASCALE_NUM_SLICES: '2'
        lines = re.findall(r"^\s*(\w+)\s*:\s*(.*?)\s*$", metadata("tpu-env") or "", re.MULTILINE)
        values |= {name: value.strip("'\"") for name, value in lines if name in names}
    count = _number(values, names[0], 1)
    number = _number(values, names[1], 0) if count > 1 else 0
    address = values.get(names[2], "") if count > 1 else ""
    if count > 1 and not address:
        raise ConfigError(f"{names[0]}={count}, but {names[2]}, the host of slice 0, is not set")
    return count, number, address


def _number(variables: Variables, name: str, default: int | None = None) -> int:
    text = variables.get(name) or (None if default is None else str(default))
    if text is None or not text.strip().isdecimal():
        raise ConfigError(f"variable {name} must be a number, not {text!r}")
    return int(text)


def _port(job: int) -> int:
    """A port from the job's number, so that two jobs on one host have two."""
    return job % 2**12 + 65535 - 2**12 + 1


def _host(address: str) -> str:
    """`host` of `host` or `host:port`."""
    return re.sub(r":\d+$", "", address)


def _one_gpu(variables: Variables, local: int) -> list[int] | None:
    """The GPU of a process that shares its host, unless it sees one alone already."""
    visible = variables.get("CUDA_VISIBLE_DEVICES", "")
    return None if visible and "," not in visible else [local]
