"""The training loop: start or resume, step, log, evaluate, checkpoint, stop.

Metrics that it writes, besides the results of evaluation (`eval/...`, `eval_ema/...`):

    train/...   every `train.log_every_steps` steps: means of the step's own metrics over the
                finite steps since the last line of this start (`averaged_steps` of them);
                `skipped_steps` since the run began; with a scaled loss (float16) the newest
                `loss_scale`, and `overflowed_steps` since the run began, which are not among
                the skipped ones; of the images that process 0 has read
                since this start, `shrunk_share` (0..1), those larger than the canvas, and
                `corrupt_images`, different records that were replaced; `images_per_second`,
                `step_time` (s), `data_wait` (0..1), `eta` (s), of the same interval; where
                they are known, `mfu` (0..1, see `hardware`) and `memory_gib` (peak of the
                fullest device)
    start/...   once per start, with its first line: seconds to the first step and their
                parts, programs and how many of them the compilation cache had (`startup`)

A run that is stopped by a signal writes the line of its unfinished interval, and the next
start begins a new interval.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import ml_collections

from deit_jax import checkpoint, data, distributed, storage
from deit_jax.distributed import sharding
from deit_jax.errors import RunStopped
from deit_jax.evaluation import agreement, evaluate, rows
from deit_jax.recipe import fit, hardware
from deit_jax.tracking import averages, display, profiler, progress, startup, writers
from deit_jax.train import dump, moved, nonfinite, pictures, preemption
from deit_jax.train import init as init_lib
from deit_jax.train import setup as setup_lib
from deit_jax.train import step as step_lib
from deit_jax.train import workdir as workdir_lib
from deit_jax.train.experiment import Experiment
from deit_jax.train.nonfinite import NonFiniteError

# Steps dispatched and not yet waited for. More would hide nothing further, and an
# unbounded queue of collectives can deadlock.
IN_FLIGHT = 2


class Interrupted(RunStopped):
    """A signal stopped the run; its state is saved."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class OutOfDeviceMemoryError(RunStopped):
    """The run does not fit into the memory of its devices; the message names what would help."""


def train(
    config: ml_collections.ConfigDict,
    *,
    workdir: str,
    force_resume: bool = False,
    processes: distributed.Processes = distributed.ALONE,
) -> dict[str, float]:
    """Starts or resumes the training that `config` describes, in `workdir`, on all processes.

    Returns the results of the last evaluation, `{}` if there was none.

    Raises:
      ConfigError: the run cannot start; all mistakes together, before any training.
      NonFiniteError: loss or gradient was not finite, see `nonfinite`.
      Interrupted: stopped by a signal; the state is saved.
      OutOfDeviceMemoryError: the run does not fit; checkpoints, if there are any, are intact.
    """
    with preemption.Preemption() as guard, startup.StartClock() as clock:
        experiment, folder, span = setup_lib.prepare(config, workdir, force_resume, processes)
        try:
            run = _Run(experiment, folder, span, guard, clock, force_resume)
            processes.agree("start", {"step of the newest checkpoint": run.start})
            return run.run()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfDeviceMemoryError(fit.out_of_memory(experiment.recipe)) from error


class _Run:
    """One start of a run: the state on the devices, and where results are written."""

    def __init__(
        self,
        experiment: Experiment,
        workdir: storage.Path,
        profile: profiler.Span | None,
        guard: preemption.Preemption,
        clock: startup.StartClock,
        force_resume: bool,
    ):
        self.experiment, self.workdir, self.guard, self.clock = experiment, workdir, guard, clock
        self.durations = experiment.recipe.durations
        self.recorded_steps = experiment.recipe.label_steps
        self.batch_sharding = experiment.batch_sharding
        self.checkpointer = checkpoint.Checkpointer(
            workdir / "checkpoints", **experiment.checkpointing
        )
        self.state = init_lib.first_state(experiment, self.checkpointer, force_resume)
        self.metadata = init_lib.metadata(experiment)
        self.start = start = int(self.state.step)
        self.skipped_steps = int(self.state.nonfinite_steps)
        # Of a scaled loss: loss_scale and overflowed_steps.
        self.scaling: dict[str, float] = {}
        self.writer = writers.MetricsWriter(
            workdir, start, experiment.recipe.config.to_dict(), **experiment.recipe.config.log
        )
        self.progress = progress.Progress(
            total_steps=self.durations.total_steps,
            steps_per_epoch=self.durations.steps_per_epoch,
            batch_size=self.durations.batch_size,
            start_step=start,
            ideal_step_seconds=experiment.ideal_step_seconds(),
        )
        self.display = display.make_display(self.durations.total_steps, start)
        self.profiler = profiler.Profiler(
            profile, folder=workdir / "profile", start_step=start, print_line=self.display.say
        )
        self.teacher = experiment.place_teacher()
        self.recorder = experiment.start_recorder(self.display.say)
        self.train_step = step_lib.jit(experiment.make_train_step(), self.batch_sharding)
        # What it says of each image, too, is then known to every process.
        self.eval_step = jax.jit(
            sharding.on_rows(experiment.make_eval_step(), self.batch_sharding),
            out_shardings=sharding.replicated(experiment.mesh),
        )
        # (step, its metrics and the teacher's labels, not waited for)
        self.pending: collections.deque = collections.deque()
        self.averages = averages.MetricAverages()
        self.health = data.Health()
        self.noted_epoch = -1
        self.start_times: dict[str, float] = {}
        self.results: dict[str, float] = {}
        # Of the last evaluation, image by image.
        self.rows: dict[str, rows.Rows] = {}
        if jax.process_index() == 0:
            # Only now: a start that is refused must not change the config of the run.
            workdir_lib.store_config(workdir, experiment.recipe.config)

    def run(self) -> dict[str, float]:
        with contextlib.closing(self.display):
            return self._run()

    def _run(self) -> dict[str, float]:
        start, stop, total = self.start, self.durations.stop_at, self.durations.total_steps
        if start >= stop:
            self.writer.close()
            self.checkpointer.close()
            self.display.say(f"already at step {start:,} of {total:,}: nothing to do")
            return self.results
        moved.record(self.workdir, start, self.clock.time, self.experiment.recipe)
        if start:
            self.display.say(f"resuming after step {start:,} of {total:,}")
        host_batches = self.experiment.train_batches(start_step=start)
        self.health = host_batches.health
        try:
            with (
                self.writer,
                self.checkpointer,
                self.recorder or contextlib.nullcontext(),
                self._prefetch(host_batches) as batches,
            ):
                for step in range(start + 1, stop + 1):
                    with self.progress.waiting():
                        batch = next(batches)
                    if self.profiler.begins(step):
                        self._between_steps(self.profiler.start)
                    if step == start + 1:
                        self._first_step(step, batch)
                    else:
                        self._dispatch(step, batch)
                    if self.profiler.ends(step):
                        self._between_steps(self.profiler.stop)
                    self._drain(in_flight=IN_FLIGHT)
                    self._end_of_step(step)
                if jax.process_index() == 0:
                    finished = pictures.Finished(self.experiment, self.workdir, self.rows)
                    pictures.draw(finished, stop, self.writer, self.display.say)
        finally:
            self.profiler.stop()
        if jax.process_index() == 0:
            self.display.say(f"done: checkpoints, metrics.jsonl and figures in {self.workdir}")
        return self.results

    def _prefetch(self, host_batches: Iterator) -> data.prefetch_to_device:
        to_global = functools.partial(sharding.to_global, self.batch_sharding)
        return data.prefetch_to_device(host_batches, to_global)

    def _dispatch(self, step: int, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Starts `step` (counted from 1) and returns its metrics without waiting for them."""
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self.state, metrics = self.train_step(self.state, self.teacher, batch)
        labels = metrics.pop("labels", None)
        self.pending.append((step, metrics, labels))
        return metrics

    def _first_step(self, step: int, batch: Mapping[str, jax.Array]) -> None:
        """Compiles and runs the first step, timed apart from the others."""
        with self.progress.paused(steps=1):
            times = self.clock.first_step(lambda: self._dispatch(step, batch))
        self.display.say(startup.describe(times))
        self.start_times = {f"start/{key}": value for key, value in times.items()}

    def _between_steps(self, action: Callable[[], None]) -> None:
        """Runs `action` with nothing left to do on the devices, outside of the measured time."""
        self._drain()
        jax.block_until_ready(self.state)
        with self.progress.paused():
            action()

    def _drain(self, *, in_flight: int = 0) -> None:
        """Reads the metrics of all but the newest `in_flight` steps, and logs what is due."""
        while len(self.pending) > in_flight:
            step, arrays, labels = self.pending.popleft()
            metrics = {key: float(value) for key, value in jax.device_get(arrays).items()}
            self.skipped_steps = int(metrics.pop("nonfinite_steps"))
            in_a_row = int(metrics.pop("nonfinite_in_a_row"))
            of_scale = ("loss_scale", "overflowed_steps")
            self.scaling = {key: metrics.pop(key) for key in of_scale if key in metrics}
            overflowed = metrics.pop("overflowed", 0.0)
            if metrics.pop("finite"):
                self.averages.add(metrics)
            elif overflowed:
                self.averages.skip()
            else:
                self._record_nonfinite(step, metrics, in_a_row)
            if self.recorder and step <= self.recorded_steps:
                # Only now: after a halt, steps have the images of no step of the run.
                self.recorder.add(step - 1, labels)
            if step % self.durations.log_every == 0 or step == self.durations.stop_at:
                self._log(step)

    def _record_nonfinite(self, step: int, metrics: dict[str, float], in_a_row: int) -> None:
        """Notes a skipped update, or ends the run with a dump of the state before it."""
        self.averages.skip()
        counts = {"in_a_row": in_a_row, "limit": self.experiment.max_nonfinite}
        if in_a_row < self.experiment.max_nonfinite:
            self.display.say(
                nonfinite.skip_message(step, metrics, total=self.skipped_steps, **counts)
            )
            return
        with self.progress.paused():
            # Halted: the steps dispatched since have not changed the state.
            dumped = dump.write_dump(
                self.workdir, step=step, state=self.state, metrics=metrics, metadata=self.metadata
            )
        self._log(step)
        self.checkpointer.close()
        saved = self.checkpointer.steps
        left = f"checkpoint of step {saved[-1]:,} is intact" if saved else "nothing was saved yet"
        message = nonfinite.stop_message(step, metrics, dumped=dumped, **counts)
        raise NonFiniteError(f"{message} In {self.workdir} {left}.")

    def _log(self, step: int) -> None:
        """Writes the metrics of the interval that ends with `step`, and prints its line."""
        health, notes = self.health, []
        means = self.averages.take() | {
            "skipped_steps": float(self.skipped_steps),
            "shrunk_share": health.shrunk / max(health.images, 1),
            "corrupt_images": float(health.corrupt),
        }
        means |= self.scaling
        if overflowed := int(self.scaling.get("overflowed_steps", 0)):
            notes.append(f"overflowed {overflowed}, loss scale {self.scaling['loss_scale']:g}")
        if self.skipped_steps:
            notes.append(f"skipped {self.skipped_steps}")
        if (memory := hardware.peak_memory_gib()) is not None:
            means["memory_gib"] = memory
            notes.append(f"memory {memory:.1f} GiB")
        epoch = step // self.durations.steps_per_epoch
        if epoch != self.noted_epoch:
            notes += _health_notes(health)
            self.noted_epoch = epoch
        loss = {"loss": means["loss"]} if "loss" in means else {}
        line, speed = self.progress.report(step, loss, notes=notes)
        self.display.report(step, line)
        values = {f"train/{key}": value for key, value in (means | speed).items()}
        self.writer.write(step, self.start_times | values)
        self.start_times = {}

    def _end_of_step(self, step: int) -> None:
        """Evaluates, saves and stops when it is due, with the metrics of `step` read before."""
        durations = self.durations
        last = step == durations.stop_at
        # Every process calls this at every step; at the last one there is nothing left to stop.
        stopping = self.guard.requested(step) and not last
        evaluating = not stopping and (last or durations.is_due(durations.eval_every, step))
        saving = stopping or evaluating or durations.is_due(durations.checkpoint_every, step)
        if not saving:
            return
        self._drain()
        if stopping and self.averages:
            self._log(step)
        with self.progress.paused():
            if evaluating:
                self._evaluate(step)
            if self.recorder:
                # A run that resumes here does not ask the teacher again.
                self.recorder.flush()
            metrics = self.results if evaluating else None
            # First, so that a run which resumes here has every line up to here.
            self.writer.sync()
            self.checkpointer.save(step, self.state, metadata=self.metadata, metrics=metrics)
        if stopping:
            self.checkpointer.wait()
            raise Interrupted(
                f"signal received, step {step:,} saved in {self.workdir}; rerun the same command "
                "to resume",
                self.guard.exit_code,
            )

    def _evaluate(self, step: int) -> None:
        candidates = {"eval": self.state.variables()}
        if self.state.ema_params is not None:
            candidates["eval_ema"] = self.state.variables(ema=True)
        with self._prefetch(self.experiment.eval_batches()) as batches:
            results = evaluate.evaluate(
                self.eval_step, candidates, self.teacher, batches, self.rows
            )
        self.results = {
            f"{name}/{key}": value for name, sums in results.items() for key, value in sums.items()
        }
        self.writer.write(step, self.results)
        for name, sums in results.items():
            self.display.say(f"{name:<9}{evaluate.summary(sums)}")
            if step == self.durations.stop_at and self.teacher is not None:
                self.display.say(agreement.table(sums, title=f"{name}: differ, % of images"))


def _health_notes(health: data.Health) -> list[str]:
    """Of the images that were shrunk or replaced, for the log line."""
    notes = []
    if health.shrunk:
        notes.append(f"{health.shrunk / health.images:.1%} of images shrunk to the canvas")
    if health.corrupt:
        notes.append(f"{health.corrupt} corrupt images replaced")
    return notes
