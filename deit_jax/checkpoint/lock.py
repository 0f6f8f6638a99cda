"""One training process per folder: two would delete each other's unfinished checkpoints."""

import fcntl
import os
import pathlib
import socket

from deit_jax.checkpoint.layout import CheckpointError


class FolderLock:
    """Locked from construction to `release`, or to the end of the process, however it ends.

    The lock file is beside the folder. On a file system that is read-only or without locks
    there is no lock. A second lock in the same process is allowed: a notebook's interrupted
    run may still have the first.

    Raises:
      CheckpointError: another process has the lock; the message names it.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._file: int | None = None
        path = folder.with_name(f".{folder.name}.lock")
        try:
            self._file = file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            self.release()
            if holder != _me():
                raise CheckpointError(
                    f"another process ({holder or 'unknown'}) is training in {folder.parent}; "
                    "wait for it, end it, or choose another workdir"
                ) from None
        except OSError:
            self.release()
        else:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, _me().encode(), 0)

    def release(self) -> None:
        """Releases the lock; harmless when repeated."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _me() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"
