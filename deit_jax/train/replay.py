"""Repeats one step from its dump, with the same state, batch and draws, and inspects it."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from deit_jax import checkpoint, errors, rng, sharding, trees
from deit_jax.checkpoint import layout
from deit_jax.tracking import startup
from deit_jax.train import dump, schema
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import init as init_lib
from deit_jax.train import step as step_lib

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Replay:
    """The outcome of a repeated step.

    Attributes:
      step: its number, counted from 1.
      then: its metrics in the run.
      now: the same metrics in the repetition.
      finite: whether the repetition was finite.
      parameters, gradients: name -> (non-finite values, all values), of the arrays that
        have any.
      largest: (name, magnitude) of the largest finite parameter.
    """

    step: int
    then: dict[str, float]
    now: dict[str, float]
    finite: bool
    parameters: dict[str, tuple[int, int]]
    gradients: dict[str, tuple[int, int]]
    largest: tuple[str, float]


def replay(folder: pathlib.Path, overrides: Iterable[str] = ()) -> Replay:
    """Repeats the step of a dump, with `section.key=value` overrides of the run's config.

    Raises:
      ConfigError: the folder is not a dump, is damaged, or does not fit the overrides.
    """
    step, then = dump.read_dump(folder)
    stored = layout.read_description(folder / str(step - 1)).metadata["config"]
    resolved = schema.resolve(ml_collections.ConfigDict(_tuples(stored)), overrides)
    experiment = experiment_lib.build(resolved)
    startup.use_compilation_cache(resolved.compilation_cache, workdir=folder.absolute().parent)
    with checkpoint.Checkpointer(folder) as saver:
        restored = saver.restore(init_lib.abstract_state(experiment))
    if restored is None:
        raise errors.ConfigError(f"{folder} contains no checkpoint of step {step - 1}")
    state = restored.state
    batch_sharding = sharding.batch_sharding(experiment.mesh)
    batch = _batch(experiment, step, batch_sharding)
    replicated = sharding.replicated(experiment.mesh)
    teacher = experiment.teacher and jax.device_put(experiment.teacher.variables, replicated)
    parameters, largest = not_finite(state.params), largest_value(state.params)

    # The step does not return its gradients, so they are computed apart.
    gradients = jax.jit(sharding.on_rows(_gradients(experiment), batch_sharding))
    *_, grads = gradients(state, teacher, batch)
    # The run's own program, which donates the state.
    train_step = step_lib.jit(experiment.make_train_step(), batch_sharding)
    _, metrics = train_step(state, teacher, batch)
    metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
    return Replay(
        step=step,
        then=then,
        now={key: metrics[key] for key in then},
        finite=bool(metrics["finite"]),
        parameters=parameters,
        gradients=not_finite(grads),
        largest=largest,
    )


def not_finite(tree: PyTree) -> dict[str, tuple[int, int]]:
    """Name -> (values that are NaN or infinite, all values), of the arrays that have any."""
    count = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), tree))
    counts = trees.named_leaves(jax.device_get(count(tree)))
    sizes = {name: leaf.size for name, leaf in trees.named_leaves(tree).items()}
    return {name: (int(bad), sizes[name]) for name, bad in counts.items() if bad}


def largest_value(tree: PyTree) -> tuple[str, float]:
    """Name and magnitude of the largest finite value."""
    magnitude = lambda x: jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0))
    largest = jax.device_get(jax.jit(lambda tree: jax.tree.map(magnitude, tree))(tree))
    name, value = max(trees.named_leaves(largest).items(), key=lambda pair: pair[1])
    return name, float(value)


def describe(result: Replay) -> list[str]:
    """The lines of `deit-jax replay`."""
    now, then = result.now, result.then
    lines = [
        f"step {result.step}: loss {now['loss']}, gradient norm {now['grad_norm']}: "
        + ("finite" if result.finite else "not finite, as in the run"),
        f"in the run: loss {then['loss']}, gradient norm {then['grad_norm']}",
        f"largest parameter: {result.largest[1]:.3g} in {result.largest[0]}",
    ]
    for kind, counts in (("parameters", result.parameters), ("gradients", result.gradients)):
        lines.append(f"{kind} that are not finite: {len(counts) or 'none'}")
        lines += [f"  {name}: {bad:,} of {size:,} values" for name, (bad, size) in counts.items()]
    return lines


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _batch(
    experiment: experiment_lib.Experiment, step: int, batch_sharding: jax.sharding.NamedSharding
) -> PyTree:
    rows = sharding.local_rows(batch_sharding, experiment.canvases)
    with experiment.train_batches(start_step=step - 1, rows=rows) as batches:
        return sharding.to_global(batch_sharding, next(batches))


def _gradients(experiment: experiment_lib.Experiment):
    options = {
        key: value for key, value in experiment.recipe.config.step.items() if key != "ema_decay"
    }
    return step_lib.make_gradients(
        experiment.recipe.model,
        experiment.augment_fn,
        experiment.recipe.loss_fn,
        rng.base_key(experiment.recipe.config.seed),
        experiment.teacher.fn if experiment.teacher else None,
        **options,
    )
