"""Repeating one step from its dump: the same state, batch and draws, looked at closely."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from deit_jax import checkpoint, rng, sharding, trees
from deit_jax.checkpoint import layout
from deit_jax.tracking import startup
from deit_jax.train import dump, experiment, inflight, schema
from deit_jax.train import init as init_lib
from deit_jax.train import step as step_lib

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a repeated step gave.

    Attributes:
      step: its number, counted from 1.
      then: metrics that the run read.
      now: the same metrics of the repetition.
      finite: whether the repetition was finite.
      parameters, gradients: name -> how many values are not finite, of how many; only
        where there are any.
      largest: name of the parameter with the largest finite magnitude, and that.
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
      ConfigError: no dump there, a damaged one, or one of another structure than the
        overrides ask for.
    """
    step, then = dump.read_dump(folder)
    stored = layout.read_description(folder / str(step - 1)).metadata["config"]
    resolved = schema.resolve(ml_collections.ConfigDict(_tuples(stored)), overrides)
    built = experiment.build(resolved)
    startup.use_compilation_cache(resolved.compilation_cache, workdir=folder.absolute().parent)
    with checkpoint.Checkpointer(folder) as saver:
        state = saver.restore(init_lib.abstract_state(built)).state
    rows = sharding.batch_sharding(built.mesh)
    batch = _batch(built, step, rows)
    copies = sharding.replicated(built.mesh)
    teacher = built.teacher and jax.device_put(built.teacher.variables, copies)
    parameters, largest = not_finite(state.params), largest_value(state.params)

    # The optimizer leaves no gradients to look at, so they are computed apart.
    *_, grads = jax.jit(sharding.on_rows(_gradients(built), rows))(state, teacher, batch)
    # The run's own program, which takes the state with it.
    flight = inflight.Steps(
        sharding.on_rows(built.make_train_step(), rows),
        state=state,
        teacher=teacher,
        copies=copies,
    )
    flight.dispatch(step, batch)
    _, finite, metrics = next(flight.take())
    return Replay(
        step=step,
        then=then,
        now=metrics,
        finite=finite,
        parameters=parameters,
        gradients=not_finite(grads),
        largest=largest,
    )


def not_finite(tree: PyTree) -> dict[str, tuple[int, int]]:
    """Name -> (values that are NaN or infinite, all values), of the leaves that have any."""
    count = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), tree))
    counts = trees.named_leaves(jax.device_get(count(tree)))
    sizes = {name: leaf.size for name, leaf in trees.named_leaves(tree).items()}
    return {name: (int(bad), sizes[name]) for name, bad in counts.items() if bad}


def largest_value(tree: PyTree) -> tuple[str, float]:
    """Name and magnitude of the leaf with the largest finite value."""
    magnitude = lambda x: jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0))
    found = jax.device_get(jax.jit(lambda tree: jax.tree.map(magnitude, tree))(tree))
    name, value = max(trees.named_leaves(found).items(), key=lambda pair: pair[1])
    return name, float(value)


def describe(told: Replay) -> list[str]:
    """The lines of `deit-jax replay`."""
    now, then = told.now, told.then
    lines = [
        f"step {told.step}: loss {now['loss']}, gradient norm {now['grad_norm']}: "
        + ("finite" if told.finite else "not finite, as in the run"),
        f"in the run: loss {then['loss']}, gradient norm {then['grad_norm']}",
    ]
    lines.append(f"largest parameter: {told.largest[1]:.3g} in {told.largest[0]}")
    for what, found in (("parameters", told.parameters), ("gradients", told.gradients)):
        lines.append(f"{what} that are not finite: {len(found) or 'none'}")
        lines += [f"  {name}: {bad:,} of {size:,} values" for name, (bad, size) in found.items()]
    return lines


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _batch(built: experiment.Experiment, step: int, rows: jax.sharding.NamedSharding) -> PyTree:
    held = sharding.local_rows(rows, built.canvases)
    with built.train_batches(start_step=step - 1, rows=held) as batches:
        return sharding.to_global(rows, next(batches))


def _gradients(built: experiment.Experiment):
    options = {key: value for key, value in built.config.step.items() if key != "ema_decay"}
    return step_lib.make_gradients(
        model=built.model,
        augment_fn=built.augment_fn,
        loss_fn=built.loss_fn,
        base_key=rng.base_key(built.config.seed),
        teacher_fn=built.teacher.fn if built.teacher else None,
        **options,
    )
