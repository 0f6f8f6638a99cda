"""The state from which a run starts or resumes, and the metadata of its checkpoints."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deit_jax import builders, checkpoint, rng, sharding
from deit_jax.errors import ConfigError, unknown
from deit_jax.evaluation import heads
from deit_jax.tracking import provenance
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import step as step_lib
from deit_jax.train.experiment import Experiment
from deit_jax.train_state import TrainState

PyTree = Any


def first_state(
    experiment: Experiment, checkpointer: checkpoint.Checkpointer, max_nonfinite: int
) -> TrainState:
    """The state to start from, on the mesh.

    1. This run's own newest intact checkpoint; 2. the weights that config.init names;
    3. random weights. Where the run has a checkpoint, 2 and 3 are never used.
    """
    init, abstract = _initializer(experiment)
    restored = checkpointer.restore(abstract)
    if restored is not None:
        state = restored.state
        if int(in_a_row := state.nonfinite_in_a_row) < max_nonfinite:
            return state
        # A limit lowered since then must not halt the run before its first step.
        lowered = jax.device_put(np.int32(max_nonfinite - 1), in_a_row.sharding)
        return dataclasses.replace(state, nonfinite_in_a_row=lowered)
    key = rng.step_key(rng.base_key(experiment.recipe.config.seed), rng.Purpose.INIT, 0)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(init, out_shardings=shardings)(key, _loaded(experiment))


def abstract_state(experiment: Experiment) -> TrainState:
    """Shapes, dtypes and shardings of the run's training state."""
    return _initializer(experiment)[1]


def _initializer(experiment: Experiment) -> tuple[Callable, TrainState]:
    """(function of key and loaded variables that makes the state, the abstract state)."""

    def init(key: jax.Array, variables: PyTree) -> TrainState:
        ema = experiment.recipe.config.step.ema_decay > 0
        return step_lib.init_state(
            experiment.recipe.model, experiment.recipe.tx, key, ema=ema, variables=variables
        )

    shapes = jax.eval_shape(init, rng.base_key(0), _loaded(experiment))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        sharding.tree_shardings(experiment.mesh, shapes),
    )
    return init, abstract


def _loaded(experiment: Experiment) -> PyTree | None:
    return experiment.start.variables if experiment.start else None


def metadata(experiment: Experiment) -> dict[str, Any]:
    """JSON values that describe a checkpoint of this run: model, classes, config, versions."""
    config, model = experiment.recipe.config, experiment.recipe.model
    kwargs = experiment_lib.model_kwargs(config) | {"num_classes": experiment.data.num_classes}
    return {
        "model": {"name": config.model.name, "kwargs": kwargs},
        "class_names": experiment.data.class_names,
        "config": config.to_dict(),
        "image": {
            "size": list(model.image_size),
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "crop_ratio": config.eval.crop_ratio,
        },
        "provenance": provenance.collect(),
    }


def checkpoint_options(experiment: Experiment) -> dict[str, Any]:
    """The `checkpoint` section, with a default for the metric that selects the best.

    Raises:
      ConfigError: numbers that would keep nothing, a metric that evaluation does not give,
        or one by which the worst would be kept.
    """
    options = dict(experiment.recipe.config.checkpoint)
    names = heads.head_names(distilled="dist" in experiment.recipe.model.heads)
    metric = options["best_metric"]
    if metric is None:
        metric = options["best_metric"] = f"eval/{heads.main_head(names)}/top1"
    weights = ("eval", "eval_ema") if experiment.recipe.config.step.ema_decay else ("eval",)
    known = [
        f"{which}/{head}/{value}"
        for value in ("top1", "top5", "loss")
        for which in weights
        for head in names
    ]
    if metric not in known:
        raise unknown("best_metric", metric, known)
    if metric.endswith("loss") == options["higher_is_better"]:
        raise ConfigError(
            f"higher_is_better must be {not options['higher_is_better']} for best_metric="
            f"{metric!r}, or the worst checkpoint would be kept"
        )
    builders.bind(checkpoint.Retention, options)()
    return options
