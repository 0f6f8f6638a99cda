"""Connecting the processes of a run: finding the others, agreeing with them, ending with them."""

import atexit
import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

import deit_jax
from deit_jax.distributed import metadata
from deit_jax.distributed.environments import Place, alone, find_place
from deit_jax.distributed.line import Line
from deit_jax.errors import ConfigError, RunStopped

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy")
# Of exceptions that all processes raise at the same step, after a save: nobody fails.
_ORDERLY = (75, 130)


class Processes:
    """The processes of a run, as one of them sees it.

    Attributes:
      place: which of them this is.
    """

    def __init__(self, place: Place, line: Line | None = None):
        self.place, self._line = place, line

    def agree(self, topic: str, facts: Mapping[str, Any]) -> None:
        """Compares `facts` with those of the other processes; waits for all of them.

        Raises:
          ConfigError: on every process, with the keys that differ and their values.
        """
        if self._line is None:
            return
        shown = {key: repr(value) for key, value in facts.items()}
        if differing := self._line.gather(topic, shown, differences):
            raise ConfigError(
                "the processes of this run differ:\n"
                + "\n".join(f"  {text}" for text in differing)
                + "\nStart all of them with the same command, files and packages"
            )


ALONE = Processes(alone("not joined"))


def differences(facts: list[dict[str, str]]) -> list[str]:
    """`key: value (process 0, 2), other value (process 1)` for every key that is not the same."""
    lines = []
    for key in sorted(set().union(*facts)):
        having: dict[str, list[int]] = {}
        for number, values in enumerate(facts):
            having.setdefault(values.get(key, "(absent)"), []).append(number)
        if len(having) > 1:
            parts = [f"{value} ({_numbers(numbers)})" for value, numbers in having.items()]
            lines.append(f"{key}: {', '.join(parts)}")
    return lines


def _numbers(numbers: list[int], limit: int = 6) -> str:
    more = f" and {len(numbers) - limit} more" if len(numbers) > limit else ""
    return f"process {', '.join(map(str, numbers[:limit]))}{more}"


@contextlib.contextmanager
def join(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_timeout_seconds: int = 100,
    join_timeout_seconds: int = 300,
) -> Iterator[Processes]:
    """Finds the other processes and connects this one to them; a run of one needs nothing.

    Around the run: what it raises is sent to the others, which then end too. The processes part
    when they exit.

    Args:
      coordinator: `host:port` of process 0, for machines that no environment describes
        (`environments.ENVIRONMENTS`); then `num_processes` and `process_id` are needed too.
      heartbeat_timeout_seconds: a process without a sign of life for this long counts as lost,
        and the others end.
      join_timeout_seconds: how long to wait for the others.

    Raises:
      ConfigError: an incomplete description, or other packages than the other processes have.
      JoinError: not all came in time.
    """
    place = _place(coordinator, num_processes, process_id)
    for name, value in (
        ("heartbeat_timeout_seconds", heartbeat_timeout_seconds),
        ("join_timeout_seconds", join_timeout_seconds),
    ):
        if value < 1:
            raise ConfigError(
                f"--{name} must be at least 1, not {value}; a minute or more tolerates a busy "
                "network, a few seconds detect a dead process sooner"
            )
    _print(str(place))
    if place.processes == 1:
        yield Processes(place)
        return
    line = Line(place, silence_seconds=heartbeat_timeout_seconds, say=_print)
    line.meet(timeout_seconds=join_timeout_seconds)
    with _ending_together(line):
        processes = Processes(place, line)
        processes.agree("versions", versions())
        _connect(line, heartbeat_timeout_seconds, join_timeout_seconds)
        yield processes


def check_joined() -> None:
    """Refuses what would train wrongly: several processes that are not connected.

    Raises:
      ConfigError: jax sees more than one process, and none of them has joined the others.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ConfigError(
            f"jax sees {jax.process_count()} processes, but they have not joined each other; give "
            "each --coordinator=HOST:PORT --num_processes=N --process_id=I"
        )


def versions() -> dict[str, str]:
    """Of Python, this library (with a digest of its source) and the packages that compute."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(deit_jax.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return found | {"deit_jax": f"{deit_jax.__version__}, source {digest.hexdigest()[:12]}"}


def _place(coordinator: str | None, num_processes: int | None, process_id: int | None) -> Place:
    """By the flags, else by the environment."""
    if coordinator is None and num_processes is None and process_id is None:
        return find_place(os.environ, metadata.attribute)
    if coordinator is None or num_processes is None or process_id is None:
        raise ConfigError(
            "--coordinator, --num_processes and --process_id must be set together; on TPU VMs and "
            "under Kubernetes, Slurm or MPI set none of them"
        )
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id must be 0 to {num_processes - 1} (--num_processes={num_processes}), "
            f"not {process_id}"
        )
    if not coordinator.rpartition(":")[2].isdecimal() or coordinator.startswith(":"):
        raise ConfigError(f"--coordinator must be HOST:PORT, not {coordinator!r}")
    if num_processes == 1:
        return alone("--num_processes=1")
    return Place(num_processes, process_id, coordinator, "flags")


def _connect(line: Line, heartbeat_seconds: int, timeout_seconds: int) -> None:
    """Connects jax, whose own watch over the processes is only the second one."""
    if any("_proxy" in name.lower() for name in os.environ):
        # Else gRPC would look for this machine behind the proxy.
        os.environ["no_grpc_proxy"] = "127.0.0.1"
    jax.distributed.initialize(
        coordinator_address=line.address,
        coordinator_bind_address=line.address,
        num_processes=line.place.processes,
        process_id=line.place.process,
        local_device_ids=line.place.local_gpus,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout_seconds,
        heartbeat_timeout_seconds=2 * heartbeat_seconds + 30,
    )


@contextlib.contextmanager
def _ending_together(line: Line) -> Iterator[None]:
    """Parts at exit, or tells the others why this process ends early."""
    try:
        yield
    except BaseException as error:
        known = isinstance(error, ConfigError | RunStopped)
        if not known:
            # Where another process has ended, jax only finds a connection broken.
            line.follow()
        status = 2 if isinstance(error, ConfigError) else getattr(error, "exit_code", 1)
        if status in _ORDERLY:
            atexit.register(_part, line)
            raise
        text = str(error) if known else f"{type(error).__name__}: {error}"
        sentence = " ".join(text.split())
        line.fail(status, f"ended: {sentence[:1000]}")
        # jax would wait for the others.
        atexit.register(_exit, status)
        raise
    atexit.register(_part, line)


def _part(line: Line) -> None:
    jax.distributed.shutdown()
    line.leave()


def _exit(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
