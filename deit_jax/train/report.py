"""What a run prints before it trains: parameters, devices and the recipe as it was resolved."""

import textwrap
from typing import Any

import jax

from deit_jax import config as config_lib
from deit_jax.recipe import checks, summary
from deit_jax.train.experiment import Experiment

_WIDTH = 110


def parameter_table(params: Any) -> str:
    """Name, shape and size of every parameter, and the total; abstract leaves will do."""
    from clu import parameter_overview

    return parameter_overview.get_parameter_overview(params, include_stats=False)


def resolved_recipe(experiment: Experiment) -> str:
    """The recipe in words, what is questionable about it, and every option of the config."""
    e, devices = experiment, jax.devices()
    shape = " x ".join(f"{axis}={size}" for axis, size in e.mesh.shape.items())
    lines = [
        f"devices: {len(devices)} {devices[0].device_kind} in {jax.process_count()} process(es), "
        f"mesh {shape}",
        f"data: {e.data.description}",
    ]
    if e.teacher:
        lines.append(f"teacher: {e.teacher.description}")
    if e.start:
        lines.append(f"start: {e.start.report}")
    lines += ["", summary.describe(e.recipe), ""]
    lines += [f"warning: {text}" for text in checks.recipe_warnings(e.recipe)]
    return "\n".join([*lines, "config", *_sections(e.recipe.config)])


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
