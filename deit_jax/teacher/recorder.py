"""Writes the teacher's labels while steps run: packed, checked and written on a thread."""

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from deit_jax import storage
from deit_jax.errors import ConfigError, RunStopped
from deit_jax.teacher import manifest as manifest_lib

# What waits for the thread, which a store may keep waiting: bytes, which may be on the device, and
# steps. The thread gets many steps at a time, because to wake it costs more than to pack a step.
_WAITING_BYTES, _WAITING_STEPS, _BATCHES = 1 << 27, 1024, 32


class RecordingError(RunStopped):
    """Labels cannot be written."""


class Recorder:
    """Takes the labels of one step after the other and writes each epoch's file.

    A file is written when its epoch is complete and at `flush`, each time as a whole in one
    operation. So what a checkpoint of the run counts as done is on disk once `flush` has
    returned, and a kill leaves the beginning of an epoch, with which the next start resumes.

    Args:
      folder: of the set; made, with its `labels.json`, where there is none.
      manifest: of the set.
      made: JSON values for `labels.json`, of what the labels were made with.
      print_line: for notes.

    Raises:
      ConfigError: the folder has labels of something else, or cannot be written.
    """

    def __init__(
        self,
        folder: storage.Path,
        manifest: manifest_lib.Manifest,
        *,
        made: Mapping[str, Any],
        print_line: Callable[[str], None],
    ):
        self._files, self._print = manifest.files(folder), print_line
        _open(folder, manifest, made)
        # Of the epoch in work, each as it will be in the file.
        self._epoch = -1
        self._records: list[memoryview] = []
        # What its file had before.
        self._found = b""
        self._skipping = False
        self._error: BaseException | None = None
        waiting = min(_WAITING_BYTES // self._files.record.itemsize, _WAITING_STEPS)
        self._together = max(waiting // _BATCHES, 1)
        # (step, its labels); a step of None asks for the file.
        self._added: list[tuple[int | None, Mapping[str, jax.Array]]] = []
        self._queue: queue.Queue = queue.Queue(_BATCHES)
        self._thread = threading.Thread(target=self._run, name="write-labels", daemon=True)
        self._thread.start()

    def add(self, step: int, labels: Mapping[str, jax.Array]) -> None:
        """Takes the labels [B, ...] of a step, counted from 0; waits for no device.

        The first step may be any; the steps before it in its epoch must be in the file.

        Raises:
          RecordingError: earlier labels could not be written.
        """
        self._raise()
        for array in labels.values():
            array.copy_to_host_async()
        self._added.append((step, labels))
        if len(self._added) >= self._together:
            self._hand_over()

    def present(self, epoch: int) -> int:
        """Steps at the beginning of an epoch whose labels are in its file, intact."""
        return len(self._files.beginning(epoch)) // self._files.record.itemsize

    def flush(self) -> None:
        """Returns once all labels that were added are in the files. Raises as `add`."""
        self._added.append((None, {}))
        self._hand_over()
        self._queue.join()
        self._raise()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread; what was added since the last `flush` is in no file."""
        self._queue.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise RecordingError(
                f"labels cannot be written to {self._files.folder} ({self._error})"
            ) from self._error

    def _hand_over(self) -> None:
        self._queue.put(self._added)
        self._added = []

    def _run(self) -> None:
        while (added := self._queue.get()) is not None:
            try:
                if self._error is None:
                    for step, labels in added:
                        self._take(step, labels)
            except BaseException as error:  # noqa: BLE001 - raised again by `add` and `flush`
                self._error = error
            finally:
                self._queue.task_done()

    def _take(self, step: int | None, labels: Mapping[str, jax.Array]) -> None:
        if step is None:
            self._write()
            return
        epoch, step_of_epoch = divmod(step, self._files.steps)
        if epoch != self._epoch:
            self._begin(epoch, step_of_epoch)
        if self._skipping:
            return
        rows = {name: np.asarray(array) for name, array in labels.items()}
        self._records.append(self._files.pack(step_of_epoch, rows))
        if step_of_epoch == self._files.steps - 1:
            self._write()

    def _begin(self, epoch: int, step_of_epoch: int) -> None:
        """Resumes the file of an epoch, which must have the steps before this one."""
        before = step_of_epoch * self._files.record.itemsize
        self._found = self._files.beginning(epoch)
        self._epoch, self._records = epoch, [memoryview(self._found)[:before]]
        self._skipping = len(self._found) < before
        if self._skipping:
            file, folder = self._files.path(epoch), self._files.folder
            self._print(
                f"labels: {file} lacks the steps before {step_of_epoch}, so this epoch is not "
                f"recorded; `deit-jax labels --output={folder}` completes it"
            )

    def _write(self) -> None:
        """Writes the epoch; of the steps that are still to come it keeps what the file had."""
        if not self._skipping and self._records:
            rest = memoryview(self._found)[sum(map(len, self._records)) :]
            self._files.write(self._epoch, [*self._records, rest])


def _open(folder: storage.Path, manifest: manifest_lib.Manifest, made: Mapping[str, Any]) -> None:
    """Writes the manifest, or compares it with the one that is there."""
    try:
        if not (folder / manifest_lib.FILE_NAME).exists():
            manifest.write(folder, made)
            return
    except OSError as error:
        raise ConfigError(f"record: {folder} cannot be written ({error.strerror})") from error
    found = manifest_lib.read(folder)
    if found.id == manifest.id:
        return
    differ = manifest_lib.differences(_facts(found), _facts(manifest))
    raise ConfigError(f"record: {folder} has other labels: {differ}; choose another folder")


def _facts(manifest: manifest_lib.Manifest) -> dict[str, Any]:
    teacher = {"teacher": manifest.teacher["digest"], "labels": manifest.kind.description}
    return manifest.inputs | teacher
