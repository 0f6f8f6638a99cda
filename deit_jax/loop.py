"""The training loop: start or go on, step, look, evaluate, save, stop."""

import collections
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections

from deit_jax import (
    checkpoint,
    curves,
    data,
    evaluate,
    experiment,
    metrics,
    preemption,
    progress,
    provenance,
    report,
    rng,
    sharding,
    steps,
)
from deit_jax import workdir as workdir_lib
from deit_jax.errors import RunStopped
from deit_jax.experiment import Experiment
from deit_jax.problems import Problems
from deit_jax.state import TrainState

PyTree = Any

# Steps dispatched and not yet waited for. More would hide nothing further, and an
# unbounded queue of collectives can deadlock.
IN_FLIGHT = 2


class NonFiniteError(RunStopped):
    """Loss or gradient was not a number; the message names the step and what is left."""


class Interrupted(RunStopped):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def train(
    config: ml_collections.ConfigDict, *, workdir: str, force_resume: bool = False
) -> dict[str, float]:
    """Runs, or goes on with, the training that `config` describes, in `workdir`.

    Returns the results of the last evaluation, `{}` if there was none.

    Raises:
      ConfigError: the run cannot start; everything that is wrong, before any training.
      NonFiniteError: loss or gradient was not finite.
      Interrupted: asked to stop; the state is saved.
    """
    with preemption.Preemption() as guard:
        return _train(config, workdir, force_resume, guard)


def _train(
    config: ml_collections.ConfigDict,
    workdir: str,
    force_resume: bool,
    guard: preemption.Preemption,
) -> dict[str, float]:
    problems = Problems()
    built = problems.check("", experiment.build, config)
    opened = problems.check(
        "", workdir_lib.open_workdir, workdir, config, force_resume=force_resume
    )
    problems.raise_any()
    folder, notices = opened
    if jax.process_index() == 0:
        print(report.parameter_table(built.abstract_params))
        print(report.resolved_recipe(built), *notices, sep="\n", flush=True)
        workdir_lib.store_config(folder, config)
    cache = config.compilation_cache or str(folder / "compilation_cache")
    jax.config.update("jax_compilation_cache_dir", cache)
    # Small programs too: together they cost seconds of every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return _Run(built, folder, guard).to_the_end()


class _Run:
    """One start of a run: what is on the devices, what is written where."""

    def __init__(self, built: Experiment, folder: pathlib.Path, guard: preemption.Preemption):
        self.built, self.plan, self.folder, self.guard = built, built.plan, folder, guard
        self.rows = sharding.batch_sharding(built.mesh)
        self.checkpointer = checkpoint.Checkpointer(
            folder / "checkpoints", **_checkpoint_options(built)
        )
        self.state, self.metadata = _first_state(built, self.checkpointer)
        start = int(self.state.step)
        self.writer = metrics.MetricsWriter(
            folder, resume_step=start, config=built.config.to_dict(), **built.config.log
        )
        self.meter = progress.Progress(
            total_steps=self.plan.total_steps, steps_per_epoch=self.plan.steps_per_epoch,
            batch_size=self.plan.batch_size, start_step=start, enabled=jax.process_index() == 0,
        )
        self.teacher = built.teacher and jax.device_put(
            built.teacher.variables, sharding.replicated(built.mesh)
        )
        self.eval_step = jax.jit(self._on_rows(built.make_eval_step()))
        self.pending: collections.deque = collections.deque()
        self.window: list[dict[str, float]] = []
        self.results: dict[str, float] = {}

    def to_the_end(self) -> dict[str, float]:
        start, stop = int(self.state.step), self.plan.stop_at
        if start >= stop:
            self.writer.close()
            self.checkpointer.close()
            _say(f"already at step {start:,} of {self.plan.total_steps:,}: nothing to do")
            return self.results
        train_step = jax.jit(self._on_rows(self.built.make_train_step()), donate_argnums=0)
        with self.writer, self.checkpointer, self._train_batches(start) as batches:
            for step in range(start + 1, stop + 1):
                with self.meter.waiting():
                    batch = next(batches)
                if step == start + 1:
                    scalars = self._first_step(train_step, batch)
                else:
                    self.state, scalars = train_step(self.state, self.teacher, batch)
                self.pending.append((step, scalars))
                self._take_metrics(keep=IN_FLIGHT)
                self._after(step)
        self._finish()
        return self.results

    def _first_step(self, train_step: Callable, batch: PyTree) -> PyTree:
        """Compiles and takes the first step, on a clock of its own."""
        begun = time.perf_counter()
        with self.meter.paused(steps=1):
            self.state, scalars = train_step(self.state, self.teacher, batch)
            jax.block_until_ready(scalars)
        _say(f"compiled, first step done in {time.perf_counter() - begun:.1f} s")
        return scalars

    def _on_rows(self, step: Callable) -> Callable:
        """`step` with every array of its batch cut by rows, wherever it was put."""

        def on_rows(state: PyTree, teacher: PyTree, batch: PyTree):
            return step(state, teacher, jax.lax.with_sharding_constraint(batch, self.rows))

        return on_rows

    def _train_batches(self, start: int) -> data.prefetch_to_device:
        canvases = data.canvas_count(
            self.plan.batch_size, self.built.config.input.repeats, self.built.mesh.size
        )
        held = sharding.local_rows(self.rows, canvases)
        host = self.built.train_batches(start_step=start, rows=held)
        return data.prefetch_to_device(host, lambda b: sharding.to_global(self.rows, b))

    def _take_metrics(self, *, keep: int) -> None:
        """Reads the scalars of all but the newest `keep` steps, and writes those that are due."""
        while len(self.pending) > keep:
            step, scalars = self.pending.popleft()
            scalars = {key: float(value) for key, value in jax.device_get(scalars).items()}
            if not scalars.pop("finite"):
                self._not_finite(step, scalars)
            self.window.append(scalars)
            if step % self.plan.log_every == 0 or step == self.plan.stop_at:
                self._log(step)

    def _log(self, step: int) -> None:
        means = {
            key: sum(scalars[key] for scalars in self.window) / len(self.window)
            for key in self.window[-1]
        }
        speed = self.meter.report(step, {"loss": means["loss"]})
        self.writer.write(step, {f"train/{key}": value for key, value in (means | speed).items()})
        self.window.clear()

    def _after(self, step: int) -> None:
        """Evaluates, saves and stops when it is time to, after all of `step` is known."""
        plan = self.plan
        last = step == plan.stop_at
        # Every process asks at every step; at the last one there is nothing left to cut short.
        stopping = self.guard.requested(step) and not last
        evaluating = not stopping and (last or plan.is_due(plan.eval_every, step))
        saving = stopping or evaluating or plan.is_due(plan.checkpoint_every, step)
        if not saving:
            return
        self._take_metrics(keep=0)
        with self.meter.paused():
            if evaluating:
                self._evaluate(step)
            self.checkpointer.save(
                step, self.state, metadata=self.metadata,
                metrics=self.results if evaluating else None,
            )
        if stopping:
            self.checkpointer.wait()
            raise Interrupted(
                f"asked to stop; saved at step {step:,} in {self.folder}, start again to go on",
                self.guard.exit_code,
            )

    def _evaluate(self, step: int) -> None:
        candidates = {"eval": self.state.variables()}
        if self.state.ema_params is not None:
            candidates["eval_ema"] = self.state.variables(ema=True)
        held = sharding.local_rows(self.rows, self.built.evaluation.batch_size)
        host = self.built.eval_batches(rows=held)
        put = lambda batch: sharding.to_global(self.rows, batch)  # noqa: E731
        with data.prefetch_to_device(host, put) as batches:
            results = evaluate.evaluate(self.eval_step, candidates, self.teacher, batches)
        self.results = {
            f"{name}/{key}": value for name, sums in results.items() for key, value in sums.items()
        }
        self.writer.write(step, self.results)
        for name, sums in results.items():
            _say(f"{name:<9}{evaluate.summary(sums)}")

    def _not_finite(self, step: int, scalars: dict[str, float]) -> None:
        dump = self.folder / f"nonfinite-step-{step}.json"
        if jax.process_index() == 0:
            dump.write_text(json.dumps({"step": step, "metrics": {
                key: repr(value) for key, value in scalars.items()}}, indent=2) + "\n")
        self.checkpointer.close()
        kept = self.checkpointer.steps
        left = f"the checkpoint of step {kept[-1]:,} is intact" if kept else "nothing was saved yet"
        raise NonFiniteError(
            f"loss or gradient is not finite at step {step:,} (loss {scalars['loss']}, gradient "
            f"norm {scalars['grad_norm']}): the update was not made and the run stops. In "
            f"{self.folder} {left}; details in {dump}. A lower config.schedule.base_lr, "
            "config.optim.clip_norm=1.0 or float32 may help."
        )

    def _finish(self) -> None:
        if jax.process_index() == 0:
            curves.plot_curves({self.folder.name: self.folder}, self.folder / "curves.png")
            _say(f"done: checkpoints, metrics.jsonl, tensorboard and curves.png in {self.folder}")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _first_state(built: Experiment, checkpointer: checkpoint.Checkpointer):
    """The state to start from, and the metadata of its checkpoints.

    1. This run's own newest sound checkpoint; 2. the weights that config.init names;
    3. random weights. A checkpoint of ours is never passed over for 2 or 3.
    """
    config, model = built.config, built.model
    key = rng.step_key(rng.base_key(config.seed), rng.Purpose.INIT, 0)
    start = built.start.variables if built.start else None

    def init(key: jax.Array, variables: PyTree) -> TrainState:
        return steps.init_state(
            model, built.tx, key, ema=config.step.ema_decay > 0, variables=variables
        )

    abstract = jax.eval_shape(init, key, start)
    shardings = sharding.tree_shardings(built.mesh, abstract)
    metadata = {
        "model": {"name": config.model.name,
                  "kwargs": experiment.model_kwargs(config) | {"num_classes": built.data.num_classes}},
        "class_names": built.data.class_names,
        "config": config.to_dict(),
        "image": {
            "size": list(model.image_size),
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "crop_ratio": config.eval.crop_ratio,
        },
        "provenance": provenance.collect(),
    }
    wanted = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract, shardings,
    )
    restored = checkpointer.restore(wanted)
    if restored is not None:
        return restored.state, metadata
    return jax.jit(init, out_shardings=shardings)(key, start), metadata


def _checkpoint_options(built: Experiment) -> dict[str, Any]:
    options = dict(built.config.checkpoint)
    if options["best_metric"] is None:
        head = evaluate.MEAN if getattr(built.model, "distilled", False) else evaluate.CLASS
        options["best_metric"] = f"eval/{head}/top1"
    return options
