"""The state that a run starts or goes on from, and what is saved beside it."""

import dataclasses
from typing import Any

import jax

from deit_jax import checkpoint, rng, sharding
from deit_jax.errors import ConfigError, unknown
from deit_jax.evaluation import evaluate
from deit_jax.tracking import provenance
from deit_jax.train import experiment
from deit_jax.train import step as step_lib
from deit_jax.train.experiment import Experiment
from deit_jax.train_state import TrainState

PyTree = Any


def first_state(
    built: Experiment, checkpointer: checkpoint.Checkpointer
) -> tuple[TrainState, dict[str, Any]]:
    """The state to start from, on the mesh, and the metadata of its checkpoint, `{}` if new.

    1. This run's own newest sound checkpoint; 2. the weights that config.init names;
    3. random weights. A checkpoint of ours is never passed over for 2 or 3.
    """
    init, wanted = _initialiser(built)
    restored = checkpointer.restore(wanted)
    if restored is not None:
        return restored.state, restored.metadata
    config = built.config
    key = rng.step_key(rng.base_key(config.seed), rng.Purpose.INIT, 0)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    return jax.jit(init, out_shardings=shardings)(key, _start(built)), {}


def abstract_state(built: Experiment) -> TrainState:
    """Shapes, dtypes and shardings of the run's training state."""
    return _initialiser(built)[1]


def _initialiser(built: Experiment):
    """(function of key and starting variables that makes the state, what it makes)."""

    def init(key: jax.Array, variables: PyTree) -> TrainState:
        return step_lib.init_state(
            built.model, built.tx, key, ema=built.config.step.ema_decay > 0, variables=variables
        )

    abstract = jax.eval_shape(init, rng.base_key(0), _start(built))
    shardings = sharding.tree_shardings(built.mesh, abstract)
    wanted = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        abstract,
        shardings,
    )
    return init, wanted


def _start(built: Experiment) -> PyTree | None:
    return built.start.variables if built.start else None


def metadata(built: Experiment) -> dict[str, Any]:
    """JSON values that say what a checkpoint of this run is: model, classes, config, versions."""
    config, model = built.config, built.model
    kwargs = experiment.model_kwargs(config) | {"num_classes": built.data.num_classes}
    return {
        "model": {"name": config.model.name, "kwargs": kwargs},
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


def checkpoint_options(built: Experiment) -> dict[str, Any]:
    """The `checkpoint` section, with the metric that selects the best where none is named.

    Raises:
      ConfigError: numbers that keep nothing, a metric that evaluation does not give, or one
        whose worst would be kept.
    """
    options = dict(built.config.checkpoint)
    distilled = "dist" in built.model.heads
    if options["best_metric"] is None:
        head = evaluate.MEAN if distilled else evaluate.CLASS
        options["best_metric"] = f"eval/{head}/top1"
    weights = ("eval", "eval_ema") if built.config.step.ema_decay else ("eval",)
    known = [
        f"{which}/{head}/{value}"
        for value in ("top1", "top5", "loss")
        for which in weights
        for head in evaluate.heads(distilled=distilled)
    ]
    if options["best_metric"] not in known:
        raise unknown("best_metric", options["best_metric"], known)
    if options["best_metric"].endswith("loss") == options["higher_is_better"]:
        raise ConfigError(
            f"best_metric={options['best_metric']!r} with higher_is_better="
            f"{options['higher_is_better']} keeps the worst; turn higher_is_better round"
        )
    fields = {field.name for field in dataclasses.fields(checkpoint.Retention)}
    checkpoint.Retention(**{name: value for name, value in options.items() if name in fields})
    return options
