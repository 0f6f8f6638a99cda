"""The checkpoints of one run: background saves, retention, and falling back when one is damaged."""

import concurrent.futures
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from deit_jax import builders, storage
from deit_jax.checkpoint import layout
from deit_jax.checkpoint.io import Foreign, Restored, begin_save, quiet_orbax, read_state
from deit_jax.checkpoint.layout import CheckpointError, DamagedCheckpointError, SaveFailedError
from deit_jax.checkpoint.retention import Retention
from deit_jax.train_state import TrainState

_LOG = logging.getLogger(__name__)


@builders.composes({"retention": Retention})
class Checkpointer:
    """Saves and restores the training state of one run.

    Args:
      directory: usually `<workdir>/checkpoints`; made if missing. In a bucket (`gs://`), or on
        a local or mounted file system that renames atomically.
      max_failures: after this many failed saves in a row `save` raises instead of reporting.
      retention: options of `Retention`.

    Raises:
      CheckpointError: the folder cannot be made, or another process is using it.

    Every process makes one and calls every method; process 0 lists, renames and deletes.
    """

    def __init__(
        self,
        directory: str | os.PathLike | storage.Path,
        *,
        max_failures: int = 3,
        **retention: Any,
    ) -> None:
        quiet_orbax()
        self._directory = storage.path(directory).absolute()
        self._retention = Retention(**retention)
        self._max_failures = max_failures
        self._failures: list[str] = []
        self._pending: concurrent.futures.Future[None] | None = None
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked() if jax.process_index() == 0 else None
        except OSError as error:
            raise CheckpointError(
                f"checkpoint directory {self._directory} cannot be made: {error.strerror}"
            ) from error
        if self._lock is not None:
            layout.remove_unfinished(self._directory)
        self._saved = {step: self._stored_metrics(step) for step in self._agreed_steps()}

    def _locked(self) -> storage.Lock:
        """Two processes would delete each other's unfinished checkpoints."""
        try:
            return storage.Lock(self._directory.with_name(f".{self._directory.name}.lock"))
        except storage.LockedError as error:
            raise CheckpointError(
                f"another process ({error.holder}) is training in {self._directory.parent}; "
                "wait for it, end it, or choose another workdir"
            ) from None

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, *_rest: Any) -> None:
        if kind is None:
            self.close()
        else:
            # The first error is the one that matters.
            self._release()

    @property
    def steps(self) -> list[int]:
        """Committed steps, ascending, without a save in progress."""
        return sorted(self._saved)

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Copies the state to the host and writes it in the background.

        The state may be donated as soon as this returns. A failure (full disk, read-only
        directory) is logged, and training continues with the earlier checkpoints.

        Args:
          step: number of the folder.
          metadata: JSON values, in which NaN and infinities become null.
          metrics: for keep_best, and `metadata["checkpoint"]["metrics"]`.

        Returns:
          Whether a save was started: False if that step exists, or it failed at once.

        Raises:
          SaveFailedError: `max_failures` saves in a row have failed, or another process has
            taken over the folder.
          TypeError: `metadata` holds something that JSON cannot.
        """
        self._drain()
        if step in self._saved:
            return False
        metrics = layout.to_json(metrics or {}, what="metrics")
        selection = {
            key: getattr(self._retention, key) for key in ("best_metric", "higher_is_better")
        }
        record = layout.to_json(metadata, what="metadata")
        record["checkpoint"] = {"step": step, "metrics": metrics, **selection}
        size, begun = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), time.monotonic()
        self._confirm_lock()
        try:
            response = begin_save(self._directory / str(step), state, record)
        except Exception as error:  # orbax raises many kinds; all mean that nothing was saved
            self._failed(step, error, size)
            return False
        self._pending = self._worker.submit(self._commit, step, metrics, response, begun, size)
        return True

    def restore(
        self, abstract_state: TrainState, *, foreign: Foreign = lambda metadata: ""
    ) -> Restored | None:
        """The newest intact checkpoint, on the devices that `abstract_state` names.

        Newer damaged ones are logged and, once an older one has been restored, renamed to
        `damaged-<step>`.

        Args:
          abstract_state: leaves with shape, dtype and sharding (`jax.ShapeDtypeStruct`, or
            arrays); any mesh and process count, whatever the checkpoint was saved on.
          foreign: from the metadata of a checkpoint to why it is of another run, which counts
            as damaged; "" if it is of this one.

        Returns:
          None if nothing was ever saved here.

        Raises:
          CheckpointError: checkpoints exist, but none passes verification.
          StructureError: lists every array that is missing, unexpected, or of another shape
            or dtype. Nothing is cast, padded or skipped.
        """
        self._drain()
        damaged: dict[int, str] = {}
        for step in reversed(self._agreed_steps()):
            problem, restored = "damaged on another process", None
            try:
                restored = read_state(self._directory / str(step), abstract_state, step, foreign)
            except DamagedCheckpointError as error:
                problem = str(error)
            if np.all(multihost_utils.process_allgather(np.asarray(restored is not None))):
                self._set_aside(damaged, fallback=step)
                return restored
            damaged[step] = problem
            _LOG.warning("checkpoint of step %d is damaged: %s", step, problem)
        left = layout.damaged_in(self._directory)
        if damaged or left:
            lines = [f"  {step}: {text}" for step, text in damaged.items()]
            lines += [f"  {name}: set aside earlier" for name in left]
            raise CheckpointError(
                f"none of the checkpoints in {self._directory} passed verification; refusing to "
                "start from scratch:\n"
                + "\n".join(lines)
                + "\nRestore the files from a copy, or choose another workdir."
            )
        return None

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          SaveFailedError: the last save failed.
        """
        self._drain()
        if self._failures:
            raise SaveFailedError(f"the last checkpoint was not saved: {self._failures[-1]}")

    def close(self) -> None:
        """Waits, then ends the background thread. Raises as `wait`."""
        try:
            self.wait()
        finally:
            self._release()

    def _release(self) -> None:
        self._worker.shutdown(wait=True)
        if self._lock is not None:
            self._lock.release()

    def _confirm_lock(self) -> None:
        """In a bucket a process that was cut off for long can lose the folder to another."""
        if self._lock is None:
            return
        try:
            self._lock.confirm()
        except storage.LockedError as error:
            raise SaveFailedError(
                f"another process ({error.holder}) has taken over {self._directory.parent}, where "
                "this one could not be reached for a while; this one stops"
            ) from None
        except OSError as error:
            _LOG.warning("the lock of %s could not be confirmed: %s", self._directory, error)

    def _commit(
        self, step: int, metrics: dict[str, Any], response: Any, begun: float, size: int
    ) -> None:
        try:
            response.result()
        except Exception as error:
            self._failed(step, error, size)
            return
        self._failures.clear()
        self._saved[step] = metrics
        _LOG.info("checkpoint of step %d saved in %.1f s", step, time.monotonic() - begun)
        for old in sorted(self._saved.keys() - self._retention.steps_to_keep(self._saved)):
            del self._saved[old]
            if jax.process_index() == 0:
                try:
                    layout.remove_step(self._directory, old)
                except OSError as error:
                    _LOG.warning("checkpoint of step %d could not be deleted: %s", old, error)

    def _drain(self) -> None:
        """Waits for the pending save; raises when too many in a row have failed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        if len(self._failures) >= self._max_failures:
            raise SaveFailedError(
                f"{len(self._failures)} checkpoints in a row could not be saved in "
                f"{self._directory}; the last: {self._failures[-1]}"
            )

    def _failed(self, step: int, error: Exception, size: int) -> None:
        space = storage.free_bytes(self._directory)
        free = "free space unknown" if space is None else f"{space / 1e6:.0f} MB free"
        reason = str(error).strip().splitlines()
        text = (
            f"step {step}: {type(error).__name__}: {reason[0] if reason else ''} "
            f"(needs about {size / 1e6:.0f} MB, {free})"
        )
        self._failures.append(text)
        last = f"the last saved is of step {max(self._saved)}" if self._saved else "there is none"
        _LOG.error("checkpoint not saved: %s; %s", text, last)
        if jax.process_index() == 0:
            layout.remove_unfinished(self._directory)

    def _set_aside(self, damaged: Mapping[int, str], *, fallback: int) -> None:
        for step in damaged:
            self._saved.pop(step, None)
            if jax.process_index() == 0:
                folder = layout.set_aside(self._directory, step)
                message = "checkpoint of step %d set aside as %s; resuming from step %d"
                _LOG.warning(message, step, folder, fallback)

    def _stored_metrics(self, step: int) -> dict[str, Any]:
        try:
            described = layout.read_description(self._directory / str(step))
        except CheckpointError:
            return {}
        return described.metadata.get("checkpoint", {}).get("metrics", {})

    def _agreed_steps(self) -> list[int]:
        """Process 0's listing; another process may see a shared file system late."""
        steps = layout.steps_in(self._directory)
        count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
        padded = np.resize(np.asarray(steps or [0], np.int32), count)
        return [int(step) for step in multihost_utils.broadcast_one_to_all(padded)]
