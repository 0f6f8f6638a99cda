"""How long a process holds Python's interpreter lock, sampled from outside.

`/proc/PID/mem` shows whether the lock is taken; where in CPython's runtime that is written differs
between versions and is found by watching a process that holds the lock, then one that does not.
Needs Linux and the right to read a child's memory; stops nothing and adds nothing to the process.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np

_SCANNED_BYTES = 2**20
_INTERVAL = 0.0005
ADDRESS = 'ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))'
# Answers each command with an empty line, runs it, and answers once more.
_SUBJECT = f"""
import ctypes, sys, time
def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
print({ADDRESS}, flush=True)
for line in sys.stdin:
    print(flush=True)
    if line == "hold\\n":
        spin(2)
    elif line == "release\\n":
        time.sleep(2)
    else:
        for _ in range(200):
            spin(0.003)
            time.sleep(0.007)
    print(flush=True)
"""


class Subject:
    """A child process that first prints `ADDRESS`."""

    def __init__(self, command: Sequence[str], **options):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        assert self.process.stdout
        self._runtime = int(self.process.stdout.readline())
        self._memory = os.open(f"/proc/{self.process.pid}/mem", os.O_RDONLY)

    def read_line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def tell(self, line: str) -> None:
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)

    def runtime(self) -> np.ndarray:
        """CPython's runtime state as int32."""
        return np.frombuffer(os.pread(self._memory, _SCANNED_BYTES, self._runtime), np.int32)

    def sample(self, offset: int) -> tuple[float, str]:
        """Share of the time that the lock is held until the process prints a line, and the line."""
        assert self.process.stdout
        pipe = self.process.stdout.fileno()
        os.set_blocking(pipe, False)
        held = count = 0
        line = ""
        while not line and self.process.poll() is None:
            for _ in range(20):
                held += os.pread(self._memory, 4, self._runtime + offset) != bytes(4)
                count += 1
                time.sleep(_INTERVAL)
            line = self.read_line()
        os.set_blocking(pipe, True)
        return held / count, line

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=300)
        self.process.stdout.close()
        os.close(self._memory)


def calibrate() -> tuple[int, float]:
    """Offset of the lock in the runtime's state, and what is measured of a process at 0.3."""
    subject = Subject([sys.executable, "-c", _SUBJECT])
    candidates = np.ones(_SCANNED_BYTES // 4, bool)
    for command in ("hold", "release") * 2:
        subject.tell(command)
        subject.read_line()
        time.sleep(0.05)
        for _ in range(6):
            words = subject.runtime()
            candidates = candidates[: len(words)] & (
                (words == 1) if command == "hold" else words == 0
            )
            time.sleep(0.02)
        subject.read_line()
    found = np.flatnonzero(candidates)
    if not found.size:
        raise RuntimeError("the interpreter's lock is not found in this version of Python")
    offset = int(found[0]) * 4
    subject.tell("part")
    subject.read_line()
    share, _ = subject.sample(offset)
    subject.close()
    return offset, round(share, 3)
