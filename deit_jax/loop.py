"""The training loop: start or go on, step, look, evaluate, save, stop."""

import collections
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from deit_jax import (
    checkpoint,
    curves,
    data,
    evaluate,
    experiment,
    metrics,
    models,
    preemption,
    pretrained,
    progress,
    provenance,
    report,
    rng,
    sharding,
    steps,
    workdir as workdir_lib,
)
from deit_jax.errors import ConfigError
from deit_jax.experiment import Experiment
from deit_jax.problems import Problems
from deit_jax.state import TrainState

# Steps dispatched and not yet waited for. More would hide nothing further, and an
# unbounded queue of collectives can deadlock.
IN_FLIGHT = 2


class NonFiniteError(RuntimeError):
    """Loss or gradient was not a number; the message names the step and what is left."""


def train(
    config: ml_collections.ConfigDict, *, workdir: str, force_resume: bool = False
) -> dict[str, float]:
    """Runs, or goes on with, the training that `config` describes, in `workdir`.

    Returns the results of the last evaluation.

    Raises:
      ConfigError: the run cannot start; everything that is wrong, before any training.
      NonFiniteError: loss or gradient was not finite.
      preemption.Preempted: asked to stop; the state is saved.
    """
    problems = Problems()
    built = problems.check(experiment.build, config)
    opened = problems.check(
        workdir_lib.open_workdir, workdir, config, force_resume=force_resume
    )
    problems.raise_any()
    folder, notices = opened
    main = jax.process_index() == 0
    if main:
        print(report.parameter_table(built.abstract_params))
        print(report.recipe(built), *notices, sep="\n", flush=True)
        workdir_lib.store_config(folder, config)
    cache = config.compilation_cache or str(folder / "compilation_cache")
    jax.config.update("jax_compilation_cache_dir", cache)
    run = _Run(built, folder)
    try:
        return run.to_the_end()
    finally:
        run.close()


class _Run:
    """One start of a run: what is on the devices, what is written where."""

    def __init__(self, built: Experiment, folder: Any):
        self.built, self.plan, self.folder = built, built.plan, folder
        self.rows = sharding.batch_sharding(built.mesh)
        self.writer = metrics.MetricsWriter(folder)
        self.checkpointer = checkpoint.Checkpointer(
            folder / "checkpoints", **_checkpoint_options(built)
        )
        self.guard = preemption.Preemption()
        teacher = built.teacher
        self.teacher_variables = teacher and jax.device_put(
            teacher.variables, sharding.replicated(built.mesh)
        )
        self.state, self.results = self._first_state()
        self.pending: collections.deque = collections.deque()
        self.window: list[dict[str, float]] = []

    def to_the_end(self) -> dict[str, float]:
        plan, start = self.plan, int(self.state.step)
        if start >= plan.stop_at:
            progress.say(f"already at step {start:,} of {plan.total_steps:,}; nothing to do")
            return self.results
        self.meter = progress.Progress(plan=plan, start_step=start)
        train_step = self._compiled(self.built.train_step, donate=True)
        self.eval_step = self._compiled(self.built.eval_step)
        with self.guard, self._train_batches(start) as batches:
            for step in range(start + 1, plan.stop_at + 1):
                batch = next(batches)
                self.state, scalars = train_step(self.state, self.teacher_variables, batch)
                self.pending.append((step, scalars))
                self._take(keep=IN_FLIGHT)
                self._after(step, batches)
        self.checkpointer.wait()
        return self.results
