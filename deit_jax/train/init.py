"""The state from which a run starts or resumes, and the metadata of its checkpoints."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from deit_jax import checkpoint, rng
from deit_jax.distributed import sharding
from deit_jax.tracking import provenance
from deit_jax.train import loss_scale, workdir
from deit_jax.train import step as step_lib
from deit_jax.train.experiment import Experiment
from deit_jax.train_state import TrainState


def first_state(
    experiment: Experiment, checkpointer: checkpoint.Checkpointer, force_resume: bool = False
) -> TrainState:
    """The state to start from, on the mesh.

    1. This run's own newest intact checkpoint; 2. the weights that config.init names;
    3. random weights. Where the run has a checkpoint, 2 and 3 are never used. With
    `force_resume` it may be one that was saved under another config.
    """
    abstract = abstract_state(experiment)
    foreign = functools.partial(workdir.foreign, config=experiment.recipe.config)
    accept = {} if force_resume else {"foreign": foreign}
    if (restored := checkpointer.restore(abstract, **accept)) is not None:
        state = restored.state
        if int(in_a_row := state.nonfinite_in_a_row) < experiment.max_nonfinite:
            return state
        # A limit lowered since then must not halt the run before its first step.
        lowered = jax.device_put(np.int32(experiment.max_nonfinite - 1), in_a_row.sharding)
        return dataclasses.replace(state, nonfinite_in_a_row=lowered)
    return initial_state(experiment)


def initial_state(experiment: Experiment) -> TrainState:
    """The state at step 0, on the mesh: of the weights that config.init names, or random."""
    init = functools.partial(_init, experiment)
    key = rng.step_key(rng.base_key(experiment.recipe.config.seed), rng.Purpose.INIT, 0)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(experiment))
    return jax.jit(init, out_shardings=shardings)(key, _loaded(experiment))


def abstract_state(experiment: Experiment) -> TrainState:
    """Shapes, dtypes and shardings of the run's training state."""
    init = functools.partial(_init, experiment)
    shapes = jax.eval_shape(init, rng.base_key(0), _loaded(experiment))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        sharding.tree_shardings(experiment.mesh, shapes),
    )


def _init(experiment: Experiment, key: jax.Array, variables: Any) -> TrainState:
    recipe = experiment.recipe
    ema = recipe.config.step.ema_decay > 0
    scaling = loss_scale.make_rule(recipe.model.dtype, recipe.config.step)
    return step_lib.init_state(
        recipe.model, recipe.tx, key, ema=ema, variables=variables, scaling=scaling
    )


def _loaded(experiment: Experiment) -> Any:
    return experiment.start.variables if experiment.start else None


def metadata(experiment: Experiment) -> dict[str, Any]:
    """JSON values that describe a checkpoint of this run: model, classes, config, versions."""
    config, model = experiment.recipe.config, experiment.recipe.model
    kwargs = config.model.to_dict() | {"num_classes": experiment.data.num_classes}
    return {
        "model": {"name": kwargs.pop("name"), "kwargs": kwargs},
        "class_names": experiment.data.class_names,
        "config": config.to_dict(),
        "image": {
            "size": list(model.image_size),
            "mean": list(config.augment.mean),
            "std": list(config.augment.std),
            "crop_ratio": config.eval.crop_ratio,
        },
        "data": {
            # Without what `few_photos` repeats.
            "train_images": len(experiment.data.train)
            // getattr(experiment.data.train, "times", 1),
            "eval_images": len(experiment.data.eval),
            "steps_per_epoch": experiment.recipe.durations.steps_per_epoch,
        },
        "provenance": provenance.collect(),
    }
