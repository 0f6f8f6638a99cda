"""The training loop: start or go on, step, look, evaluate, save, stop.

What it writes, beside the results of evaluation (`eval/...`, `eval_ema/...`):

    train/...   every `train.log_every_steps` steps: means of the step's own metrics over the
                finite steps since the last line of this start (`averaged_steps` of them),
                `skipped_steps` since the run began; `images_per_second`, `step_time` (s),
                `data_wait` (0..1), `eta` (s), of the same interval; where they are known,
                `mfu` (0..1, see `hardware`) and `memory_gib` (peak of the fullest device)
    start/...   once a start, with its first line: seconds to the first step, what they went
                into, programs and how many of them the compilation cache had (`startup`)

A run that is asked to stop writes the line of the interval it is in, and the next start
begins an interval of its own.
"""

import dataclasses
import math
import pathlib

import jax
import ml_collections

from deit_jax import checkpoint, data, sharding
from deit_jax.errors import Problems, RunStopped
from deit_jax.evaluation import agreement, evaluate
from deit_jax.recipe import hardware
from deit_jax.tracking import averages, curves, profiler, progress, startup, writers
from deit_jax.train import experiment, inflight, nonfinite, preemption, report
from deit_jax.train import init as init_lib
from deit_jax.train import workdir as workdir_lib
from deit_jax.train.experiment import Experiment
from deit_jax.train.nonfinite import NonFiniteError


class Interrupted(RunStopped):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What a run is made of, beside its workdir."""

    built: Experiment
    policy: nonfinite.Policy
    profile: profiler.Span | None
    guard: preemption.Preemption
    clock: startup.StartClock


def train(
    config: ml_collections.ConfigDict, *, workdir: str, force_resume: bool = False
) -> dict[str, float]:
    """Runs, or goes on with, the training that `config` describes, in `workdir`.

    Returns the results of the last evaluation, `{}` if there was none.

    Raises:
      ConfigError: the run cannot start; everything that is wrong, before any training.
      NonFiniteError: loss or gradient was not finite, see `nonfinite.make_policy`.
      Interrupted: asked to stop; the state is saved.
    """
    with preemption.Preemption() as guard, startup.StartClock() as clock:
        setting, folder = _prepare(config, workdir, force_resume, guard, clock)
        return _Run(setting, folder).to_the_end()


def _prepare(
    config: ml_collections.ConfigDict,
    workdir: str,
    force_resume: bool,
    guard: preemption.Preemption,
    clock: startup.StartClock,
) -> tuple[_Setting, pathlib.Path]:
    """Checks everything, says what will run, and claims the workdir."""
    problems = Problems(config)
    built = policy = span = opened = None
    with problems.section(""):
        built = experiment.build(config)
    with problems.section("nonfinite"):
        policy = nonfinite.make_policy(**config.nonfinite)
    with problems.section("profile"):
        steps = built.plan.total_steps if built else math.inf
        span = profiler.parse_span(config.profile, total_steps=steps)
    with problems.section("checkpoint"):
        if built:
            init_lib.checkpoint_options(built)
    with problems.section(""):
        opened = workdir_lib.open_workdir(workdir, config, force_resume=force_resume)
    problems.raise_any()
    folder, notices = opened
    if jax.process_index() == 0:
        print(report.parameter_table(built.abstract_params))
        print(report.resolved_recipe(built), *notices, sep="\n", flush=True)
        workdir_lib.store_config(folder, config)
    startup.use_compilation_cache(config.compilation_cache, workdir=folder)
    return _Setting(built, policy, span, guard, clock), folder


class _Run:
    """One start of a run: what is on the devices, what is written where."""

    def __init__(self, setting: _Setting, folder: pathlib.Path):
        self.setting, self.built, self.plan = setting, setting.built, setting.built.plan
        self.folder = folder
        built = self.built
        self.rows = sharding.batch_sharding(built.mesh)
        self.checkpointer = checkpoint.Checkpointer(
            folder / "checkpoints", **init_lib.checkpoint_options(built)
        )
        state, restored = init_lib.first_state(built, self.checkpointer)
        self.metadata = init_lib.metadata(built)
        self.bad = nonfinite.BadSteps(
            setting.policy, folder, self.metadata, **restored.get("nonfinite", {})
        )
        self.start = start = int(state.step)
        self.writer = writers.MetricsWriter(
            folder, resume_step=start, config=built.config.to_dict(), **built.config.log
        )
        self.meter = progress.Progress(
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
            batch_size=self.plan.batch_size,
            start_step=start,
            ideal_step_seconds=_ideal_step_seconds(built),
            enabled=jax.process_index() == 0,
        )
        self.profiler = profiler.Profiler(
            setting.profile, folder=folder / "profile", start_step=start, say=_say
        )
        copies = sharding.replicated(built.mesh)
        self.teacher = built.teacher and jax.device_put(built.teacher.variables, copies)
        self.steps = inflight.Steps(
            sharding.on_rows(built.make_train_step(), self.rows),
            state=state,
            teacher=self.teacher,
            copies=copies,
        )
        self.eval_step = jax.jit(sharding.on_rows(built.make_eval_step(), self.rows))
        self.window = averages.Window()
        self.start_times: dict[str, float] = {}
        self.results: dict[str, float] = {}

    def to_the_end(self) -> dict[str, float]:
        start, stop = self.start, self.plan.stop_at
        if start >= stop:
            self.writer.close()
            self.checkpointer.close()
            _say(f"already at step {start:,} of {self.plan.total_steps:,}: nothing to do")
            return self.results
        try:
            with self.writer, self.checkpointer, self._train_batches(start) as batches:
                for step in range(start + 1, stop + 1):
                    with self.meter.waiting():
                        batch = next(batches)
                    self._begin_profile(step)
                    if step == start + 1:
                        self._first_step(step, batch)
                    else:
                        self.steps.dispatch(step, batch)
                    self._end_profile(step)
                    self._take_metrics(keep=inflight.IN_FLIGHT)
                    self._after(step)
        finally:
            self.profiler.stop()
        self._finish()
        return self.results

    def _first_step(self, step: int, batch: dict[str, jax.Array]) -> None:
        """Compiles and takes the first step, on a clock of its own."""
        with self.meter.paused(steps=1):
            times = self.setting.clock.first_step(lambda: self.steps.dispatch(step, batch))
        _say(startup.describe(times))
        self.start_times = {f"start/{key}": value for key, value in times.items()}

    def _begin_profile(self, step: int) -> None:
        if self.profiler.begins(step):
            self._settle()
            with self.meter.paused():
                self.profiler.start()

    def _end_profile(self, step: int) -> None:
        if self.profiler.ends(step):
            self._settle()
            with self.meter.paused():
                self.profiler.stop()

    def _settle(self) -> None:
        """Waits until the devices have nothing left to do."""
        self._take_metrics(keep=0)
        jax.block_until_ready(self.steps.state)

    def _train_batches(self, start: int) -> data.prefetch_to_device:
        held = sharding.local_rows(self.rows, self.built.canvases)
        host = self.built.train_batches(start_step=start, rows=held)
        return data.prefetch_to_device(host, lambda b: sharding.to_global(self.rows, b))

    def _take_metrics(self, *, keep: int) -> None:
        """Looks at all but the newest `keep` steps, and writes what is due."""
        for step, finite, scalars in self.steps.take(keep=keep):
            if finite:
                self.bad.good()
                self.window.add(scalars)
            else:
                self._not_finite(step, scalars)
            if step % self.plan.log_every == 0 or step == self.plan.stop_at:
                self._log(step)

    def _not_finite(self, step: int, scalars: dict[str, float]) -> None:
        self.window.skip()
        with self.meter.paused():
            stops, told = self.bad.met(step, self.steps.state, scalars)
        if not stops:
            _say(told)
            self.steps.again()
            return
        self._log(step)
        self.checkpointer.close()
        kept = self.checkpointer.steps
        left = f"the checkpoint of step {kept[-1]:,} is intact" if kept else "nothing was saved yet"
        raise NonFiniteError(f"{told}. In {self.folder} {left}.")

    def _log(self, step: int) -> None:
        means = self.window.take() | {"skipped_steps": float(self.bad.total)}
        notes = [f"skipped {self.bad.total}"] if self.bad.total else []
        memory = hardware.peak_memory_gib()
        if memory is not None:
            means["memory_gib"] = memory
            notes.append(f"memory {memory:.1f} GiB")
        shown = {"loss": means["loss"]} if "loss" in means else {}
        speed = self.meter.report(step, shown, notes=notes)
        values = {f"train/{key}": value for key, value in (means | speed).items()}
        self.writer.write(step, self.start_times | values)
        self.start_times = {}

    def _after(self, step: int) -> None:
        """Evaluates, saves and stops when it is time to, after all of `step` is known."""
        plan = self.plan
        last = step == plan.stop_at
        # Every process asks at every step; at the last one there is nothing left to cut short.
        stopping = self.setting.guard.requested(step) and not last
        evaluating = not stopping and (last or plan.is_due(plan.eval_every, step))
        saving = stopping or evaluating or plan.is_due(plan.checkpoint_every, step)
        if not saving:
            return
        self._take_metrics(keep=0)
        if stopping and self.window:
            # The next start begins a window of its own.
            self._log(step)
        with self.meter.paused():
            if evaluating:
                self._evaluate(step)
            self.checkpointer.save(
                step,
                self.steps.state,
                metadata=self.metadata | self.bad.as_metadata(),
                metrics=self.results if evaluating else None,
            )
        if stopping:
            self.checkpointer.wait()
            raise Interrupted(
                f"asked to stop; saved at step {step:,} in {self.folder}, start again to go on",
                self.setting.guard.exit_code,
            )

    def _evaluate(self, step: int) -> None:
        state = self.steps.state
        candidates = {"eval": state.variables()}
        if state.ema_params is not None:
            candidates["eval_ema"] = state.variables(ema=True)
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
            if step == self.plan.stop_at and self.teacher is not None:
                _say(agreement.table(sums, title=f"{name}: differ, % of images"))

    def _finish(self) -> None:
        if jax.process_index() == 0:
            curves.plot_curves({self.folder.name: self.folder}, self.folder / "curves.png")
            _say(f"done: checkpoints, metrics.jsonl, tensorboard and curves.png in {self.folder}")


def _ideal_step_seconds(built: Experiment) -> float | None:
    if built.config.optim.trainable != "all":
        # The formula counts a whole backward pass.
        return None
    return hardware.ideal_step_seconds(
        built.model,
        batch_size=built.plan.batch_size,
        teacher=built.teacher.model if built.teacher else None,
        devices=list(built.mesh.devices.flat),
    )


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
