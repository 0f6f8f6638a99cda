"""SIGTERM and SIGINT: the first saves at the next step and stops, the second stops immediately.

Exit codes, for launch scripts:

    75   SIGTERM (spot preemption): saved, or not started yet; rerun the same command (EX_TEMPFAIL)
         (also where another process was lost, see `distributed.line`)
    130  SIGINT (Ctrl-C): saved, do not rerun
    143, 130 immediately   a second signal: stopped without saving
"""

import functools
import os
import signal
import socket
import sys
import threading

import jax
from jax.experimental import multihost_utils

EXIT_RESTART = 75
EXIT_INTERRUPTED = 130


class Preemption:
    """Context manager around the training loop; decides after each step whether to stop.

    A thread watches the signals, because Python's own handlers wait for the interpreter,
    which a compilation occupies for minutes: the second signal must work then too.

    Under `jax.distributed` with several processes, a signal to any one of them stops all at
    the same step. jax then owns SIGTERM: it does not end a process that never calls
    `requested`, and only a second SIGINT (or SIGKILL) stops one immediately.

    Must be entered on the main thread. `exit_code` is the process's exit status after the save.
    """

    exit_code = EXIT_RESTART

    def __init__(self) -> None:
        self._signal: int | None = None
        self._shared = jax.process_count() > 1

    def requested(self, step: int) -> bool:
        """Whether to save the state after `step` steps and stop; the same on all processes.

        With several processes, every one must call this after every step.
        """
        if self._shared:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._signal is not None

    def __enter__(self) -> "Preemption":
        watched = [signal.SIGINT] if self._shared else [signal.SIGINT, signal.SIGTERM]
        sender, receiver = socket.socketpair()
        sender.setblocking(False)
        previous = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        # These do nothing: with a handler, Python passes the signal on instead of exiting.
        handlers = {number: signal.signal(number, lambda *_: None) for number in watched}
        watcher = threading.Thread(target=self._watch, args=(receiver,), daemon=True)
        watcher.start()

        def restore() -> None:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            sender.close()
            watcher.join()
            receiver.close()

        self._restore = restore
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _watch(self, signals: socket.socket) -> None:
        write = functools.partial(print, file=sys.stderr, flush=True)
        while received := signals.recv(1):
            number = received[0]
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            name = signal.Signals(number).name
            if self._signal is not None:
                repeated = f"{name} again" if number == self._signal else name
                write(f"{repeated}: stopping now, without saving")
                os._exit(128 + number)
            self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_RESTART
            self._signal = number
            write(f"{name}: saving at the next step, then stopping; repeat it to stop now")
            if self._shared:
                # jax's own handler notifies the other processes and agrees on a step with them.
                os.kill(os.getpid(), signal.SIGTERM)
