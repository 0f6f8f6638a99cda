"""One process at a time: by `flock` on this machine, by a lease in a bucket."""

import fcntl
import os

from deit_jax.storage.lease import Lease, LockedError
from deit_jax.storage.paths import Path, StorePath
from deit_jax.storage.process import this_process


class Lock:
    """Held from construction to `release`, or to the end of the process, however it ends.

    On a file system that is read-only or without locks, and in stores other than `gs://`, there
    is no lock. A second lock in the same process is allowed: a notebook's interrupted run may
    still have the first. See `Lease` for buckets.

    Args:
      path: file of the lock, made if missing.

    Raises:
      LockedError: another process has the lock; `holder` names it.
      OSError: the bucket cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        self._lease: Lease | None = None
        if isinstance(path, StorePath):
            if path.scheme == "gs":
                self._lease = Lease(path)
            return
        try:
            self._file = file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            self.release()
            if holder != this_process().text:
                raise LockedError(holder or "unknown") from None
        except OSError:
            self.release()
        else:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, this_process().text.encode(), 0)

    def confirm(self) -> None:
        """Raises LockedError if another process has taken the lock; asks the store."""
        if self._lease is not None:
            self._lease.confirm()

    def release(self) -> None:
        """Releases the lock; harmless when repeated."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lease is not None:
            self._lease.release()
            self._lease = None
