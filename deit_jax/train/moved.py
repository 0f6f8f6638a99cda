"""A run that is resumed on other hardware, where `auto` may choose something else."""

import jax

from deit_jax import config as config_lib
from deit_jax import storage
from deit_jax.errors import ConfigError
from deit_jax.models import accelerator
from deit_jax.recipe import suitability
from deit_jax.recipe.recipe import Recipe
from deit_jax.tracking import starts


def record(workdir: storage.Path, step: int, time: float, recipe: Recipe) -> None:
    """Notes a start that resumes after `step`, with its hardware and what was chosen for it."""
    if jax.process_index() != 0:
        return
    facts = {"device": accelerator.describe(recipe.device)} | suitability.choices(recipe)
    starts.record(workdir, step, time, facts)


def notices(workdir: storage.Path, recipe: Recipe) -> list[str]:
    """A sentence for each option on `auto` that is not what it was where the run began."""
    first = next(iter(starts.read(workdir)), {})
    options, here = config_lib.flatten(recipe.config), accelerator.describe(recipe.device)
    return [
        f"notice: config.{key}=auto was {first[key]} where this run began "
        f"({first.get('device')}) and is {now} on this {here}; {_remedy(recipe, key, first[key])}"
        for key, now in suitability.choices(recipe).items()
        if options[key] == "auto" and first.get(key, now) != now
    ]


def _remedy(recipe: Recipe, key: str, old: str) -> str:
    if key == "model.attention":
        try:
            recipe.model.clone(attention=old).check_device(recipe.device)
        except ConfigError:
            return f"{old} cannot run here"
    return f"to keep {old}: --config.{key}={old} --force_resume"
