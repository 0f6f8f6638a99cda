"""Stored labels in place of a teacher: opened, compared with the run, read ahead of the step."""

import concurrent.futures
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np

from deit_jax import losses, storage
from deit_jax.errors import ConfigError
from deit_jax.teacher import manifest as manifest_lib
from deit_jax.teacher.files import LabelError

# In front of the fields of a label, among the entries of a host batch.
PREFIX = "teacher_"
# Bytes read at a time, and at most so many steps.
_CHUNK_BYTES, _CHUNK_STEPS = 1 << 20, 256


class StoredLabels:
    """A set of labels that fits the run.

    Attributes:
      manifest: what the labels are of.
      kind: see `kinds`.
      steps: labels repeat after so many steps.
      bytes_per_step: that are read.
    """

    def __init__(self, folder: storage.Path, manifest: manifest_lib.Manifest, steps: int):
        self.folder, self.manifest, self.kind = folder, manifest, manifest.kind
        self.files = manifest.files(folder)
        self.steps, self.bytes_per_step = steps, self.files.record.itemsize

    @property
    def description(self) -> str:
        """One line for the terminal."""
        return manifest_lib.describe(self.folder, self.manifest)

    def label(self, batches: Any, *, start_step: int, rows: np.ndarray) -> "LabeledBatches":
        """`batches` from `start_step` on, each with the labels of its step.

        Args:
          batches: host batches, see `data.train_batches`.
          rows: rows of the global batch that this process holds.
        """
        return LabeledBatches(batches, self, start_step, rows)

    def records(self, start_step: int) -> Generator[np.ndarray, None, None]:
        """The records of every step from `start_step` on, endless, read ahead by a thread.

        Raises:
          LabelError: before the step whose labels are missing or damaged.
        """
        with concurrent.futures.ThreadPoolExecutor(1, "read-labels") as pool:
            chunks = self._chunks(start_step)
            ahead = [pool.submit(self._read, *next(chunks)) for _ in range(2)]
            while True:
                records, error = ahead.pop(0).result()
                ahead.append(pool.submit(self._read, *next(chunks)))
                yield from records
                if error:
                    raise error

    def _chunks(self, step: int) -> Iterator[tuple[int, int, int]]:
        """Endless (epoch, first step in it, count)."""
        most = min(max(_CHUNK_BYTES // self.bytes_per_step, 1), _CHUNK_STEPS)
        while True:
            step %= self.steps
            epoch, first = divmod(step, self.files.steps)
            count = min(most, self.files.steps - first, self.steps - step)
            yield epoch, first, count
            step += count

    def _read(self, epoch: int, first: int, count: int) -> tuple[np.ndarray, LabelError | None]:
        records, error = self.files.read(epoch, first, count)
        return records["rows"], error


class LabeledBatches(Iterator[dict[str, np.ndarray]]):
    """Host batches with the stored labels of their rows, under `PREFIX` and the field.

    Attributes:
      health: of the batches.
    """

    def __init__(self, batches: Any, labels: StoredLabels, start_step: int, rows: np.ndarray):
        self.health = batches.health
        self._batches, self._rows = batches, rows
        self._records = labels.records(start_step)

    def __next__(self) -> dict[str, np.ndarray]:
        batch = next(self._batches)
        record = next(self._records)[self._rows]
        return batch | {PREFIX + name: record[name] for name in record.dtype.names or ()}

    def close(self) -> None:
        """Stops the threads; harmless when repeated."""
        self._records.close()
        self._batches.close()

    def __enter__(self) -> "LabeledBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_labels(
    folder: str,
    *,
    inputs: Mapping[str, Any],
    num_classes: int,
    distillation: str,
    needed: int,
    steps: int,
) -> StoredLabels:
    """Opens a set of labels for a run.

    Args:
      folder: with `labels.json`.
      inputs: of the run, see `manifest.inputs`.
      num_classes: of the data.
      distillation: name of the distillation loss.
      needed: steps whose labels the run uses.
      steps: after which it repeats them, and its images with them.

    Raises:
      ConfigError: no labels or damaged ones, labels of other images, of a kind that the loss
        cannot use, or too few.
    """
    path = storage.path(folder)
    found = manifest_lib.read(path)
    if differ := manifest_lib.differences(found.inputs, inputs):
        raise ConfigError(f"labels: those in {path} are of other images than this run's: {differ}")
    if found.kind.num_classes != num_classes:
        raise ConfigError(
            f"labels: those in {path} are of {found.kind.num_classes} classes, but the data has "
            f"{num_classes}"
        )
    if distillation not in losses.CHOICE_ONLY and not found.kind.has_logits:
        raise ConfigError(
            f"labels: those in {path} are hard, but loss.distillation={distillation!r} needs the "
            "teacher's logits; record labels with teacher.label_k, or use "
            "--config.loss.distillation=hard"
        )
    labels = StoredLabels(path, found, steps)
    _check_length(labels, needed)
    return labels


def _check_length(labels: StoredLabels, needed: int) -> None:
    """Raises LabelError unless the files have the labels of so many first steps."""
    per_epoch, present = labels.files.steps, labels.files.steps_present()
    epochs = range(-(-needed // per_epoch))
    missing = [e for e in epochs if present.get(e, 0) < min(per_epoch, needed - e * per_epoch)]
    labels.files.check_headers(range(missing[0] if missing else len(epochs)))
    if not missing:
        return
    first, last = missing[0], missing[-1]
    step, have = first * per_epoch, present.get(first, 0)
    text = (
        f"labels: {labels.files.path(first)} "
        + (f"has {have:,} of {per_epoch:,} steps" if have else "is missing")
        + f"; this run needs epochs 0 to {epochs[-1]} and {len(missing)} of them are not complete. "
        f"`deit-jax labels --output={labels.folder} --epochs={first}:{last}` with the teacher's "
        "--config makes them"
    )
    if whole := step // per_epoch:
        text += f"; --config.teacher.label_epochs={whole} repeats the first {whole}"
    raise LabelError(text)
