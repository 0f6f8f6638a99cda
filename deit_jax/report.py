"""What a run prints before it trains: parameters, devices and the recipe as it was resolved."""

import textwrap
from typing import Any

import jax
from clu import parameter_overview

from deit_jax import config as config_lib
from deit_jax import optim
from deit_jax.data import distinct_images_per_epoch
from deit_jax.experiment import Experiment

_WIDTH = 110


def parameter_table(params: Any) -> str:
    """Name, shape and size of every parameter, and the total; abstract leaves will do."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


def recipe(experiment: Experiment) -> str:
    """The resolved recipe, a line for each subject, then every option of the config."""
    e, config = experiment, experiment.config
    plan = e.plan
    devices = jax.devices()
    repeats = config.input.repeats
    distinct = distinct_images_per_epoch(plan.records, plan.batch_size, repeats)
    shape = " x ".join(f"{axis}={size}" for axis, size in e.mesh.shape.items())
    lines = {
        "devices": f"{len(devices)} {devices[0].device_kind}, {jax.process_count()} process(es), "
        f"mesh {shape}",
        "data": e.data.description,
        "epoch": f"{plan.steps_per_epoch:,} steps of {plan.batch_size:,}; {distinct:,} distinct "
        f"images, each shown {repeats} time(s)",
        "length": f"{plan.total_steps:,} steps = {plan.epoch(plan.total_steps):g} epochs",
        "mixing": f"{plan.batch_size // e.mix_group} groups of {e.mix_group} images, each with its "
        "own lambda and box" if e.mix_group else "off",
        "learning rate": _learning_rate(e),
        "teacher": e.teacher.description if e.teacher else "none",
        "start from": config.init or "random weights",
    }
    text = [f"{name + ':':<15}{value}" for name, value in lines.items()]
    text.append("weight decay:")
    text.append(optim.format_groups(_groups(e)))
    text.append("config:")
    text += _sections(config)
    return "\n".join(text)


def _groups(e: Experiment) -> list:
    options = e.config.optim
    return optim.decay_groups(
        e.abstract_params,
        weight_decay=options.weight_decay,
        decay_dist_token=options.decay_dist_token,
        layer_decay=options.layer_decay,
        trainable=options.trainable,
    )


def _learning_rate(e: Experiment) -> str:
    steps = range(0, e.plan.total_steps, max(1, e.plan.total_steps // 1000))
    values = [float(e.schedule(step)) for step in steps]
    last = float(e.schedule(e.plan.total_steps - 1))
    return f"{values[0]:.3g} at first, {max(values):.3g} at most, {last:.3g} at last"


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
