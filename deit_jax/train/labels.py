"""The teacher's labels without a student: what `deit-jax labels` does."""

import functools
import re
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from deit_jax import data, rng
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError
from deit_jax.tracking import progress as progress_lib
from deit_jax.train import answers, loop, preemption
from deit_jax.train import experiment as experiment_lib
from deit_jax.train.experiment import Experiment

# How much a kill costs at most.
_FLUSH_SECONDS = 30.0
_IN_FLIGHT = 2


def parse_epochs(text: str) -> tuple[int, int]:
    """`first:last`, counted from 0, both included. Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if match is None or int(match[1]) > int(match[2]):
        raise ConfigError(
            f"--epochs={text} is not first:last; epochs are counted from 0 and both are included"
        )
    return int(match[1]), int(match[2])


def make_labels(config: ml_collections.ConfigDict, *, epochs: tuple[int, int] | None) -> None:
    """Writes the labels that a run of `config` would record, into `config.teacher.record`.

    Steps whose labels are there are left out, so a call that was killed resumes where it was,
    what is damaged is made again, and several calls can share the epochs.

    Args:
      epochs: first and last; None: the steps that the run uses.

    Raises:
      ConfigError: the recipe has no teacher, or the folder has other labels.
      Interrupted: stopped by a signal; the labels so far are written.
    """
    with preemption.Preemption() as guard:
        experiment = experiment_lib.build(config)
        if experiment.teacher is None:
            raise ConfigError(
                "config.loss.distillation is none, so the recipe has no teacher; take that of a "
                "distilled student, such as configs/deit_distilled.py:ti"
            )
        _Maker(experiment, guard).run(epochs)


class _Maker:
    """One call: the teacher on the devices, and the labels that are still to be made."""

    def __init__(self, experiment: Experiment, guard: preemption.Preemption):
        self.experiment, self.guard = experiment, guard
        self.durations = experiment.recipe.durations
        self.recorder = experiment.start_recorder(_print)
        assert experiment.teacher is not None
        step = answers.make_label_step(
            experiment.augment_fn,
            rng.base_key(experiment.recipe.config.seed),
            experiment.teacher.fn,
            experiment.label_options,
        )
        self.variables = experiment.place_teacher()
        self.label_step = jax.jit(sharding.on_rows(step, experiment.batch_sharding))

    def run(self, epochs: tuple[int, int] | None) -> None:
        per_epoch = self.durations.steps_per_epoch
        stop = self.experiment.recipe.label_steps
        first, last = epochs or (0, -(-stop // per_epoch) - 1)
        stop = (last + 1) * per_epoch if epochs else stop
        todo = self._todo(range(first, last + 1), stop)
        count = sum(map(len, todo))
        _print(f"labels: {count:,} of {stop - first * per_epoch:,} steps to be made")
        try:
            for steps in todo:
                self._make(steps, self._progress(count))
                count -= len(steps)
            if self.recorder:
                self.recorder.flush()
        finally:
            if self.recorder:
                self.recorder.__exit__()
        _print(f"done: labels in {self.experiment.recipe.config.teacher.record}")

    def _todo(self, epochs: range, stop: int) -> list[range]:
        """Ranges of steps whose labels are not there; the same on all processes."""
        per_epoch = self.durations.steps_per_epoch
        present = np.zeros(len(epochs), np.int64)
        if self.recorder:
            present[:] = [self.recorder.present(epoch) for epoch in epochs]
        if jax.process_count() > 1:
            present = np.asarray(multihost_utils.broadcast_one_to_all(present))
        todo: list[range] = []
        for epoch, done in zip(epochs, present, strict=True):
            start, end = epoch * per_epoch + int(done), min((epoch + 1) * per_epoch, stop)
            if todo and todo[-1].stop == start < end:
                todo[-1] = range(todo[-1].start, end)
            elif start < end:
                todo.append(range(start, end))
        return todo

    def _make(self, steps: range, progress: progress_lib.Progress) -> None:
        """Makes the labels of these steps, one after the other."""
        to_global = functools.partial(sharding.to_global, self.experiment.batch_sharding)
        host_batches = self.experiment.train_batches(start_step=steps.start)
        flushed = time.monotonic()
        with data.prefetch_to_device(host_batches, to_global) as batches:
            for step, labels in self._labels(steps, batches, progress):
                if self.recorder:
                    self.recorder.add(step, labels)
                stopping = self.guard.requested(step + 1)
                if self.recorder and (stopping or time.monotonic() - flushed > _FLUSH_SECONDS):
                    self.recorder.flush()
                    flushed = time.monotonic()
                if stopping:
                    raise loop.Interrupted(
                        f"signal received, labels up to step {step + 1:,} are written; rerun the "
                        "same command to resume",
                        self.guard.exit_code,
                    )
                done = step + 1 - steps.start
                if done % self.durations.log_every == 0 or step == steps[-1]:
                    _print(progress.report(done, {})[0])

    def _labels(
        self, steps: range, batches: Iterator[Any], progress: progress_lib.Progress
    ) -> Iterator[tuple[int, Any]]:
        """Each step and its labels, at most `_IN_FLIGHT` steps before they are computed."""
        waiting: list[Any] = []
        for step in steps:
            with progress.waiting():
                batch = next(batches)
            labels = self.label_step(np.int32(step), self.variables, batch)
            waiting.append(labels)
            if len(waiting) > _IN_FLIGHT:
                jax.block_until_ready(waiting.pop(0))
            yield step, labels

    def _progress(self, steps: int) -> progress_lib.Progress:
        return progress_lib.Progress(
            total_steps=steps,
            steps_per_epoch=self.durations.steps_per_epoch,
            batch_size=self.durations.batch_size,
        )


def _print(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
