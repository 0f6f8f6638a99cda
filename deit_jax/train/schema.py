"""Which builder takes which section of a config.

A builder's keyword-only parameters, and those of what it chooses, are the options of its section.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from deit_jax import augment, checkpoint, config, data, losses, optim, teacher
from deit_jax.builders import Option, Section
from deit_jax.distributed import sharding
from deit_jax.evaluation import evaluate
from deit_jax.models import registry
from deit_jax.recipe import durations
from deit_jax.tracking import writers
from deit_jax.train import nonfinite
from deit_jax.train import step as step_lib

# Options of the run as a whole, outside of any section.
TOP: dict[str, Option] = {
    "seed": Option(0, int),
    # Weights to start from: a published file, a converted one, or a run of ours.
    "init": Option("", str),
    "init_ema": Option(False, bool),
    # Of a run of ours: latest, best (by its checkpoint.best_metric) or a step.
    "init_which": Option("latest", str),
    "init_drop_head": Option(False, bool),
    # Steps to profile, 'first:last', both included, counted from 1; empty for none.
    "profile": Option("", str),
    # Folder of compiled programs; empty for one inside the workdir.
    "compilation_cache": Option("", str),
}

# The number of classes comes from the data; sizes of batch and image from one place each.
SECTIONS = {
    "model": Section(registry.options, ("name",)),
    "data": data.open_data,
    "input": data.train_batches,
    "augment": augment.make_augment,
    "teacher": teacher.make_teacher,
    "loss": losses.make_loss,
    "optim": optim.make_optimizer,
    "schedule": optim.make_schedule,
    "step": step_lib.make_train_step,
    "train": durations.make_durations,
    "eval": evaluate.Evaluation,
    "checkpoint": checkpoint.Checkpointer,
    "log": writers.MetricsWriter,
    "mesh": sharding.make_mesh,
    "nonfinite": nonfinite.make_limit,
}
SCHEMA = config.Schema(SECTIONS, TOP)


def load(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
    """The complete, locked config of `FILE[:variant]`; see `config.load_config`."""
    return config.load_config(spec, overrides, schema=SCHEMA)


def resolve(given: ConfigDict, overrides: Iterable[str] = ()) -> ConfigDict:
    """`given`, changed in place: complete, overridden, locked; see `config.resolve`."""
    return config.resolve(given, overrides, schema=SCHEMA)
