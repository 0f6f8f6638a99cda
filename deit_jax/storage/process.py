"""Which process this is, recorded so that another one can see whether it still runs."""

import dataclasses
import os
import pathlib
import socket


@dataclasses.dataclass(frozen=True)
class Process:
    """A process.

    Attributes:
      text: for messages.
      machine: start of the system and space of process numbers that `pid` belongs to; "" where
        the system does not say.
      pid: its number there.
      started: when it started, in ticks since the system did; numbers are used again.
    """

    text: str
    machine: str
    pid: int
    started: str


def this_process() -> Process:
    """The one that asks."""
    pid = os.getpid()
    text = f"pid {pid} on {socket.gethostname()}"
    return Process(text, _machine(), pid, _started(pid))


def is_dead(process: Process) -> bool:
    """Whether it ran on this machine and does no longer; False where that cannot be known."""
    if not process.machine or process.machine != _machine():
        return False
    return _started(process.pid) != process.started


def _machine() -> str:
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers of one machine each have their own numbers.
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """The start of a process; "" if there is none, or only its exit status is left."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name, in parentheses, may contain anything.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
