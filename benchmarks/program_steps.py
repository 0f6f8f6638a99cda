"""The steps of a recipe as they are compiled, without its data and its weights."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deit_jax import rng
from deit_jax.distributed import sharding
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import init
from deit_jax.train import step as step_lib
from deit_jax.train.speed import synthetic


class Program(NamedTuple):
    """A compiled step: its HLO text, the plan of one device's memory, and how long it took."""

    text: str
    memory: dict[str, int]
    seconds: float


def experiment(resolved: Any, device: Any, mesh: jax.sharding.Mesh) -> experiment_lib.Experiment:
    """The experiment of a config for a mesh of such devices; ImageNet's sizes are assumed."""
    e = synthetic.make_experiment(resolved, mesh, device=device)
    if hasattr(e.recipe.model, "attention_on"):
        # `auto` is decided where the program is traced, which is not where it is for.
        model = e.recipe.model.clone(attention=e.recipe.model.attention_on(device))
        e = dataclasses.replace(e, recipe=dataclasses.replace(e.recipe, model=model))
    return e


def _teacher(e: experiment_lib.Experiment) -> Any:
    whole = sharding.replicated(e.mesh)
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
    return e.teacher and jax.tree.map(place, e.teacher.variables)


def _train(e: experiment_lib.Experiment) -> tuple[Callable, tuple]:
    step = step_lib.jit(e.make_train_step(), e.batch_sharding)
    return step, (init.abstract_state(e), _teacher(e), synthetic.abstract_batch(e))


def _evaluate(e: experiment_lib.Experiment) -> tuple[Callable, tuple]:
    step = jax.jit(sharding.on_rows(e.make_eval_step(), e.batch_sharding))
    state = init.abstract_state(e)
    variables = {"params": state.params}
    variables |= {"batch_stats": state.batch_stats} if state.batch_stats else {}
    batch = synthetic.rows(e, e.evaluation.batch_size, e.evaluation.canvas)
    mask = jax.ShapeDtypeStruct(batch["label"].shape, jnp.bool_, sharding=e.batch_sharding)
    return step, (variables, _teacher(e), batch | {"mask": mask})


def _augment(e: experiment_lib.Experiment) -> tuple[Callable, tuple]:
    def step(number: jax.Array, batch: Any) -> Any:
        key = rng.step_key(rng.base_key(0), rng.Purpose.AUGMENT, number)
        return e.augment_fn(key, batch)

    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(e.mesh))
    return jax.jit(sharding.on_rows(step, e.batch_sharding)), (number, synthetic.abstract_batch(e))


# Name -> (function, its arguments' shapes) of an experiment.
STEPS = {"train": _train, "eval": _evaluate, "augment": _augment}


def lower(e: experiment_lib.Experiment, step: str, platform: str) -> Any:
    """A step as it is given to the compiler of a platform (tpu, cuda, cpu)."""
    function, arguments = STEPS[step](e)
    return function.trace(*arguments).lower(lowering_platforms=(platform,))


def compiled(e: experiment_lib.Experiment, step: str) -> Program:
    """A step, compiled for the devices of the experiment's mesh."""
    function, arguments = STEPS[step](e)
    lowered = function.lower(*arguments)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    plan: Any = program.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    memory = {name: getattr(plan, f"{name}_size_in_bytes") for name in names}
    return Program(program.as_text() or "", memory, seconds)
