"""Connects the processes of a run: automatically on TPU pods, Slurm and MPI, else by address."""

import os

import jax

from deit_jax.errors import ConfigError


def is_cluster() -> bool:
    """Whether this process is one of several, by the variables of the clusters that jax recognizes.

    A single process must not initialize jax.distributed: SIGTERM would no longer end it.
    """
    tasks = os.environ.get("SLURM_NTASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or "1"
    return int(tasks) > 1 or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def local_gpus() -> list[int] | None:
    """All GPUs of a node for its only Slurm task, where jax would take the first GPU alone.

    None leaves the choice to jax: one GPU per task under Slurm and MPI, everything elsewhere.
    """
    names = ("SLURM_NTASKS", "SLURM_NNODES", "SLURM_GPUS_ON_NODE")
    tasks, nodes, gpus = map(os.environ.get, names)
    return list(range(int(gpus))) if gpus and tasks and tasks == nodes else None


def initialize(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = 100,
) -> None:
    """Connects this process to the others; does nothing for a run of one process.

    Args:
      coordinator: `host:port` of process 0, for machines that no cluster manager
        describes; then `num_processes` and `process_id` are needed too.
      heartbeat_timeout_seconds: after this long without a heartbeat from another process
        the run ends with an error, so that a supervisor can restart it.

    Raises:
      ConfigError: an incomplete description.
    """
    if heartbeat_timeout_seconds < 1:
        raise ConfigError(
            f"--heartbeat_timeout_seconds must be at least 1, not {heartbeat_timeout_seconds}; a "
            "minute or more tolerates a busy network, a few seconds detect a dead process sooner"
        )
    if any(value is not None for value in (coordinator, num_processes, process_id)):
        if coordinator is None or num_processes is None or process_id is None:
            raise ConfigError(
                "--coordinator, --num_processes and --process_id must be set together; "
                "on TPU pods and under Slurm set none of them"
            )
        if not 0 <= process_id < num_processes:
            raise ConfigError(
                f"--process_id must be 0 to {num_processes - 1} (--num_processes={num_processes}), "
                f"not {process_id}"
            )
    elif not is_cluster():
        return
    jax.distributed.initialize(
        coordinator_address=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        local_device_ids=local_gpus() if coordinator is None else None,
        heartbeat_timeout_seconds=heartbeat_timeout_seconds,
    )
