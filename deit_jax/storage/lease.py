"""A lease in a bucket: which process may write a run, while it shows that it lives.

The lease is one object. It is made, renewed every `RENEW_S`, taken over and removed only under
the condition that it is still the generation that was read (`ifGenerationMatch`), so that of
two processes that act at once one fails. Who finds a lease

* of a process of this machine that has ended (kill -9, a crash) takes it over at once;
* that was not renewed for `EXPIRES_S`, by the clock of the store, takes it over: a machine that
  was preempted is replaced later than that;
* that is younger watches until it is renewed, and is refused, or until it expires.

So a second writer is refused within `RENEW_S`, and a start elsewhere after a kill waits
`EXPIRES_S` at most. A holder that could not renew for so long, because it was suspended or cut
off, may find that another process has taken over: `confirm` asks the store, and is called
before each checkpoint is written.
"""

import dataclasses
import email.utils
import json
import logging
import math
import threading
import time
import uuid
from datetime import datetime
from typing import Any, NamedTuple

from deit_jax.storage import stores
from deit_jax.storage.paths import StorePath
from deit_jax.storage.process import Process, is_dead, this_process

_LOG = logging.getLogger(__name__)

RENEW_S = 10.0
EXPIRES_S = 45.0


class LockedError(Exception):
    """Another process has the lock; `holder` names it."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"locked by {holder}")
        self.holder = holder


class _Found(NamedTuple):
    """The lease as it is: who has it, its generation, and seconds since it was renewed."""

    process: Process
    nonce: str
    generation: int
    age_s: float


class Lease:
    """Held from construction to `release`; renewed by a thread.

    Args:
      path: the object.
      renew_s, expires_s: see the module; for tests.
      process: who takes it; for tests.

    Raises:
      LockedError: another process holds it.
      OSError: the bucket cannot be read or written.
    """

    def __init__(
        self,
        path: StorePath,
        *,
        renew_s: float = RENEW_S,
        expires_s: float = EXPIRES_S,
        process: Process | None = None,
    ) -> None:
        self._path, self._expires_s = path, expires_s
        self._process, self._nonce = process or this_process(), uuid.uuid4().hex
        self._mutex = threading.Lock()
        self._holder = ""
        self._generation = self._acquire()
        self._released = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(renew_s,), name="lease", daemon=True
        )
        self._thread.start()

    def confirm(self) -> None:
        """Renews now. Raises LockedError if another process has taken over."""
        with self._mutex:
            if not self._holder:
                self._renew()
        if self._holder:
            raise LockedError(self._holder)

    def release(self) -> None:
        """Ends the lease; harmless when repeated."""
        self._released.set()
        with self._mutex:
            if self._holder or not self._generation:
                return
            generation, self._generation = self._generation, 0
            try:
                _request(self._path, "DELETE", ifGenerationMatch=generation)
            except OSError as error:
                _LOG.warning("%s is left to expire: %s", self._path, error)

    def _acquire(self) -> int:
        if generation := self._write(0):
            return generation
        watched: _Found | None = None
        deadline = 0.0
        while True:
            found = _read(self._path)
            if found is None:
                generation = self._write(0)
            elif found.nonce == self._nonce:
                # The answer to our own request was lost on its way.
                return found.generation
            elif self._is_free(found) or (watched and time.monotonic() >= deadline):
                generation = self._write(found.generation)
            elif watched and found.generation != watched.generation:
                raise LockedError(found.process.text)
            if generation:
                return generation
            if found is not None and watched is None:
                watched, left = found, max(0.0, self._expires_s - found.age_s)
                deadline = time.monotonic() + left
                message = "%s is held by %s; waiting up to %.0f s to see whether that still runs"
                _LOG.warning(message, self._path, found.process.text, left)
            time.sleep(min(1.0, self._expires_s / 10))

    def _is_free(self, found: _Found) -> bool:
        mine = (self._process.machine, self._process.pid, self._process.started)
        theirs = (found.process.machine, found.process.pid, found.process.started)
        return mine == theirs or is_dead(found.process) or found.age_s >= self._expires_s

    def _write(self, generation: int) -> int:
        """The new generation, if the lease still had this one (0: did not exist), else 0."""
        record = {"process": dataclasses.asdict(self._process), "nonce": self._nonce}
        try:
            _, answer = _request(
                self._path, "UPLOAD", data=json.dumps(record).encode(), ifGenerationMatch=generation
            )
        except FileExistsError:
            return 0
        return int(json.loads(answer)["generation"])

    def _renew(self) -> None:
        """Sets `_holder` if another process has taken over."""
        if not self._generation:
            return
        generation = self._write(self._generation)
        while not generation:
            found = _read(self._path)
            if found is None:
                # Somebody removed it by hand; we are still the one who writes.
                generation = self._write(0)
            elif found.nonce == self._nonce:
                generation = found.generation
            else:
                self._holder = found.process.text
                return
        self._generation = generation

    def _keep(self, renew_s: float) -> None:
        while not self._released.wait(renew_s):
            with self._mutex:
                if self._holder or not self._generation:
                    return
                try:
                    self._renew()
                except OSError as error:
                    # It may expire; whoever takes it then is found by the next request.
                    _LOG.warning("%s could not be renewed: %s", self._path, error)


def _read(path: StorePath) -> _Found | None:
    try:
        headers, answer = _request(path, "GET")
        about = json.loads(answer)
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    generation = int(about["generation"])
    # Both by the clock of the store.
    now = email.utils.parsedate_to_datetime(headers["Date"])
    age_s = (now - datetime.fromisoformat(about["updated"])).total_seconds()
    try:
        record = json.loads(content)
        return _Found(Process(**record["process"]), record["nonce"], generation, age_s)
    except (ValueError, KeyError, TypeError):
        # The lock file of a run that was copied from a disk.
        return _Found(Process("unknown", "", 0, ""), "", generation, math.inf)


def _request(path: StorePath, method: str, data: bytes | None = None, **query: Any) -> Any:
    """(headers, body) of a request for the object itself, which fsspec has no word for.

    Raises:
      FileExistsError: the condition in `query` does not hold.
    """
    system = path.filesystem
    bucket, name, _ = system.split_path(str(path))
    with stores.as_os_error(str(path)):
        if method == "UPLOAD":
            url = system.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
            options = {"uploadType": "media", "name": name, "data": data}
            return system.call("POST", url, bucket, **options, **query)
        return system.call(method, "b/{}/o/{}", bucket, name, **query)
