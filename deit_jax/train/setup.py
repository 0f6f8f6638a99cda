"""Everything that is checked and printed before a run starts."""

import dataclasses
import pathlib
import sys

import jax
import ml_collections

from deit_jax.errors import Problems
from deit_jax.tracking import profiler, startup
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import init as init_lib
from deit_jax.train import nonfinite, preemption, report
from deit_jax.train import workdir as workdir_lib
from deit_jax.train.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Setup:
    """What one start of a run is made with.

    Attributes:
      experiment: see `experiment.build`.
      workdir: exists, and can be written.
      max_nonfinite: see `nonfinite.make_limit`.
      profile: steps to profile, if any.
      preemption: entered; asked after every step.
      clock: measures the time to the first step.
    """

    experiment: Experiment
    workdir: pathlib.Path
    max_nonfinite: int
    profile: profiler.Span | None
    preemption: preemption.Preemption
    clock: startup.StartClock


def prepare(
    config: ml_collections.ConfigDict,
    workdir: str,
    force_resume: bool,
    guard: preemption.Preemption,
    clock: startup.StartClock,
) -> Setup:
    """Checks everything, prints what will run, and claims the workdir.

    Raises:
      ConfigError: all mistakes together.
    """
    problems = Problems(config)
    experiment = limit = span = opened = None
    with problems.section(""):
        experiment = experiment_lib.build(config)
    with problems.section("nonfinite"):
        limit = nonfinite.make_limit(**config.nonfinite)
    with problems.section("profile"):
        steps = experiment.recipe.durations.total_steps if experiment else sys.maxsize
        span = profiler.parse_span(config.profile, total_steps=steps)
    with problems.section("checkpoint"):
        if experiment:
            init_lib.checkpoint_options(experiment)
    with problems.section(""):
        opened = workdir_lib.open_workdir(workdir, config, force_resume=force_resume)
    problems.raise_any()
    folder, notices = opened
    if jax.process_index() == 0:
        print(report.parameter_table(experiment.recipe.params))
        print(report.resolved_recipe(experiment), *notices, sep="\n", flush=True)
        workdir_lib.store_config(folder, config)
    startup.use_compilation_cache(config.compilation_cache, workdir=folder)
    return Setup(experiment, folder, limit, span, guard, clock)
