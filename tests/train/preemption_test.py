"""Signals: the first saves and stops, the second stops immediately, also during a long call."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from deit_jax.train.preemption import EXIT_INTERRUPTED, EXIT_RESTART, Preemption

ROOT = pathlib.Path(__file__).resolve().parents[2]


def until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, EXIT_RESTART), (signal.SIGINT, EXIT_INTERRUPTED)]
)
def test_the_first_signal_requests_a_checkpoint(number, code, capfd):
    before = signal.getsignal(number)
    with Preemption() as guard:
        assert not guard.requested(1)
        os.kill(os.getpid(), number)
        assert until(lambda: guard.requested(2))
        assert guard.exit_code == code
    assert signal.getsignal(number) is before
    assert f"{number.name}: saving at the next step" in capfd.readouterr().err


def test_other_signals_are_left_alone_and_nothing_stays_behind():
    threads = threading.active_count()
    caught = []
    before = signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
    try:
        with Preemption() as guard:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert until(lambda: caught) and not guard.requested(1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1


_BUSY = """
import sys, time
from deit_jax.train.preemption import Preemption
with Preemption():
    print("ready", flush=True)
    {work}
"""


@pytest.mark.parametrize(
    "first, second, words",
    [
        (signal.SIGTERM, signal.SIGTERM, "SIGTERM again: stopping now"),
        (signal.SIGINT, signal.SIGINT, "SIGINT again: stopping now"),
        (signal.SIGINT, signal.SIGTERM, "SIGTERM: stopping now"),
    ],
)
def test_a_second_signal_stops_a_long_compilation_immediately(first, second, words):
    # Like a compilation, one long call that gives the lock away but does not come back to
    # the interpreter: Python's own handlers would not run until it ends.
    work = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    process = subprocess.Popen(
        [sys.executable, "-c", _BUSY.format(work=work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(first)
        assert "saving at the next step" in process.stderr.readline()
        process.send_signal(second)
        assert process.wait(timeout=20) == 128 + second
        assert process.stderr.read().startswith(words)


def test_a_run_that_is_preempted_while_it_imports_is_to_be_rerun(tmp_path):
    # In place of jax, whose import takes seconds.
    (tmp_path / "jax.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "train.py", "--config=configs/deit.py:ti", f"--workdir={tmp_path}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == EXIT_RESTART
