"""A file that grows by records, where an object of a store can only be replaced."""

import concurrent.futures
import os
import time
from collections.abc import Callable

from deit_jax.storage.paths import Path, StorePath

# How often a file in a store is brought up to date between two calls of `sync`.
UPLOAD_EVERY_S = 60.0


class Appender:
    """Appends to a file.

    On this machine each record is one system call: a kill cuts at most the last one. In a store
    the whole object is replaced, on a thread every minute, and before `sync` and `close` return.

    Args:
      path: made if missing.
      clock: seconds; for tests.

    Raises:
      OSError: also of `write`, `sync` and `close`: the file cannot be written.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._fd: int | None = None
        if isinstance(path, StorePath):
            self._content = bytearray(path.read_bytes() if path.exists() else b"")
            self._uploader = concurrent.futures.ThreadPoolExecutor(1, "upload")
            self._upload: concurrent.futures.Future[None] | None = None
            self._uploaded_at, self._uploaded_size = clock(), -1
        else:
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, record: bytes) -> None:
        """Appends `record` or nothing."""
        if self._fd is None:
            self._content += record
            idle = self._upload is None or self._upload.done()
            if idle and self._clock() - self._uploaded_at >= UPLOAD_EVERY_S:
                self._collect()
                self._begin()
            return
        begin = os.fstat(self._fd).st_size
        if os.write(self._fd, record) < len(record):
            # A full disk takes part of a record; the next one must not be glued to it.
            os.ftruncate(self._fd, begin)
            raise OSError(28, "disk full", str(self._path))

    def sync(self) -> None:
        """Returns once everything that was written is where the path says."""
        if self._fd is not None:
            return
        self._collect()
        if self._uploaded_size < len(self._content):
            self._begin()
            self._collect()

    def close(self) -> None:
        """`sync`, and the end of the file; harmless when repeated."""
        if self._fd is not None:
            os.close(self._fd)
            return
        try:
            self.sync()
        finally:
            self._uploader.shutdown()

    def _begin(self) -> None:
        content = bytes(self._content)
        self._uploaded_at, self._uploaded_size = self._clock(), len(content)
        self._upload = self._uploader.submit(self._replace, content)

    def _replace(self, content: bytes) -> None:
        assert isinstance(self._path, StorePath)
        self._path.write_bytes(content)

    def _collect(self) -> None:
        """Waits for the upload in progress and raises what it raised."""
        upload, self._upload = getattr(self, "_upload", None), None
        if upload is None:
            return
        try:
            upload.result()
        except OSError:
            self._uploaded_size = -1
            raise
