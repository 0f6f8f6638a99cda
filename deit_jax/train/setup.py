"""Everything that is checked and printed before a run starts."""

import hashlib
import textwrap
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections
import numpy as np

from deit_jax import config as config_lib
from deit_jax import distributed, storage
from deit_jax.errors import Problems
from deit_jax.recipe import checks, summary
from deit_jax.tracking import display, profiler, startup
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import moved
from deit_jax.train import workdir as workdir_lib
from deit_jax.train.experiment import Experiment

_WIDTH = 110
# Options that processes on different machines may have of their own.
OF_A_MACHINE = (
    "data.data_dir",
    "data.path",
    "input.threads",
    "input.prefetch",
    "compilation_cache",
)


def prepare(
    config: ml_collections.ConfigDict,
    workdir: str,
    force_resume: bool,
    processes: distributed.Processes,
) -> tuple[Experiment, storage.Path, profiler.Span | None]:
    """Checks everything and prints what will run; a run in the workdir is left as it is.

    Returns:
      (the experiment, the workdir, which can be written, and the steps to profile, if any).

    Raises:
      ConfigError: all mistakes together.
    """
    distributed.check_joined()
    flags = {"--workdir": workdir, "--force_resume": force_resume}
    processes.agree("config", flags | _shared_options(config))
    problems = Problems(config)
    experiment: Any = None
    opened: Any = None
    with problems.section(""):
        experiment = experiment_lib.build(config)
    with problems.section(""):
        # The config as it is stored: with batches that fit the data.
        config = experiment.recipe.config if experiment else config
        opened = workdir_lib.open_workdir(workdir, config, force_resume=force_resume)
    with problems.section(""):
        if config.compilation_cache:
            # jax would warn of every single program.
            storage.writable(config.compilation_cache, "config.compilation_cache")
    problems.raise_any()
    if processes.place.processes > 1:
        processes.agree("data", _data_facts(experiment))
    folder, notices = opened
    if jax.process_index() == 0:
        notices += moved.notices(folder, experiment.recipe)
        print(*_describe(experiment), *notices, sep="\n", flush=True)
    startup.use_compilation_cache(config.compilation_cache, workdir=folder)
    return experiment, folder, experiment.span


def _shared_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What must be the same on all processes: all but what a machine may have of its own."""
    flat = config_lib.flatten(config)
    return {f"config.{key}": value for key, value in flat.items() if key not in OF_A_MACHINE}


def _data_facts(e: Experiment) -> dict[str, Any]:
    """Sizes, classes and a digest of a few records: the same data elsewhere, or other data."""
    facts: dict[str, Any] = {"data: classes": _digest(e.data.class_names or ())}
    for split, source in (("training", e.data.train), ("evaluation", e.data.eval)):
        facts[f"data: {split} images"] = len(source)
        if source.window_shards:
            # One record would cost a whole file.
            facts[f"data: files of the {split} images"] = _digest(source.shard_lengths)
            continue
        records = sorted({len(source) * i // 8 for i in range(8)} | {len(source) - 1})
        images, labels = source.get(np.asarray(records))
        facts[f"data: sample of the {split} images"] = _digest([*images, labels])
    return facts


def _digest(values: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        plain = value.tobytes() if isinstance(value, np.ndarray) else value
        digest.update(plain if isinstance(plain, bytes) else repr(plain).encode())
        digest.update(b"|")
    return digest.hexdigest()[:12]


def _describe(e: Experiment) -> list[str]:
    """The recipe in words, what is questionable about it, and every option of the config.

    In a notebook less: a page of text would hide the curves, and `explain` has its own cell.
    """
    devices = jax.devices()
    shape = " x ".join(f"{axis}={size}" for axis, size in e.mesh.shape.items())
    lines = [
        f"devices: {len(devices)} {devices[0].device_kind} in {jax.process_count()} process(es), "
        f"mesh {shape}",
        f"data: {e.data.description}",
        *(f"note: {text}" for text in e.data.notes),
    ]
    lines += [f"teacher: {e.teacher.description}"] if e.teacher else []
    lines += [f"start: {e.start.report}"] if e.start else []
    warnings = [f"warning: {text}" for text in checks.recipe_warnings(e.recipe)]
    if display.in_notebook():
        return [*lines, *warnings]
    from clu import parameter_overview

    overview = parameter_overview.get_parameter_overview(e.recipe.params, include_stats=False)
    lines = [overview, *lines, "", summary.describe(e.recipe), "", *warnings]
    return [*lines, "config", *_sections(e.recipe.config)]


def _sections(config: Any) -> list[str]:
    lines = []
    top = {k: v for k, v in config.items() if not hasattr(v, "items")}
    for name, section in [("", top), *((k, v) for k, v in config.items() if k not in top)]:
        flat = config_lib.flatten(section)
        body = ", ".join(f"{key}={value!r}" for key, value in flat.items() if value is not None)
        lines += textwrap.wrap(
            f"{name or 'run'}: {body}", _WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    return lines
