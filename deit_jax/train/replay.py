"""Repeats one step from its dump, with the same state, batch and draws, and inspects it."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from deit_jax import builders, checkpoint, errors, rng, storage, trees
from deit_jax.checkpoint import layout
from deit_jax.distributed import sharding
from deit_jax.tracking import startup
from deit_jax.train import dump, schema
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import init as init_lib
from deit_jax.train import step as step_lib


def replay(folder: storage.Path, overrides: Iterable[str] = ()) -> tuple[bool, list[str]]:
    """Repeats the step of a dump, with `section.key=value` overrides of the run's config.

    Returns:
      (whether the repetition was finite, the lines of `deit-jax replay`).

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
    state, teacher = restored.state, experiment.place_teacher()
    with experiment.train_batches(start_step=step - 1) as batches:
        batch = sharding.to_global(experiment.batch_sharding, next(batches))
    name, value = largest_value(state.params)
    bad = {"parameters": not_finite(state.params)}

    # The step does not return its gradients, so they are computed apart.
    gradients = builders.bind(step_lib.make_gradients, resolved.step)(
        experiment.recipe.model,
        experiment.augment_fn,
        experiment.recipe.loss_fn,
        rng.base_key(resolved.seed),
        experiment.teacher.fn if experiment.teacher else None,
        experiment.label_options._replace(record=None),
    )
    gradients = jax.jit(sharding.on_rows(gradients, experiment.batch_sharding))
    bad["gradients"] = not_finite(gradients(state, teacher, batch)[-1])
    # The run's own program, which donates the state.
    train_step = step_lib.jit(experiment.make_train_step(), experiment.batch_sharding)
    _, metrics = train_step(state, teacher, batch)
    metrics.pop("labels", None)
    now = {key: float(value) for key, value in jax.device_get(metrics).items()}

    finite = bool(now["finite"])
    lines = [
        f"step {step}: loss {now['loss']}, gradient norm {now['grad_norm']}: "
        + ("finite" if finite else "not finite, as in the run"),
        f"in the run: loss {then['loss']}, gradient norm {then['grad_norm']}",
        f"largest parameter: {value:.3g} in {name}",
    ]
    for kind, counts in bad.items():
        lines.append(f"{kind} that are not finite: {len(counts) or 'none'}")
        lines += [f"  {name}: {some:,} of {size:,} values" for name, (some, size) in counts.items()]
    return finite, lines


def not_finite(tree: Any) -> dict[str, tuple[int, int]]:
    """Name -> (values that are NaN or infinite, all values), of the arrays that have any."""
    count = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.sum(~jnp.isfinite(x)), tree))
    counts = trees.named_leaves(jax.device_get(count(tree)))
    leaves = trees.named_leaves(tree)
    return {name: (int(bad), leaves[name].size) for name, bad in counts.items() if bad}


def largest_value(tree: Any) -> tuple[str, float]:
    """Name and magnitude of the largest finite value."""
    magnitude = lambda x: jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0.0))
    largest = jax.device_get(jax.jit(lambda tree: jax.tree.map(magnitude, tree))(tree))
    name, value = max(trees.named_leaves(largest).items(), key=lambda pair: pair[1])
    return name, float(value)


def _tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
