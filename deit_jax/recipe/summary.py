"""The recipe as it will run, in words: what `deit-jax explain` and a starting run print.

What was chosen from a table is described by the first line of its docstring.
"""

import math
from typing import Any

from deit_jax import augment, builders, data, losses, optim
from deit_jax import teacher as teacher_lib
from deit_jax.optim.optimizers import OPTIMIZERS
from deit_jax.optim.param_groups import make_rules
from deit_jax.optim.schedules import SCHEDULES
from deit_jax.recipe import costs, suitability
from deit_jax.recipe.recipe import Recipe

_WIDTH = 16


def describe(recipe: Recipe, *, images_per_second: float | None = None) -> str:
    """The recipe as it will run, as text.

    Args:
      images_per_second: over all devices, repeats included; gives the length in hours.
    """
    subjects = {
        "run": _run(recipe),
        "learning rate": _learning_rate(recipe),
        "optimizer": _optimizer(recipe),
        "augmentation": _augmentation(recipe),
        "loss": _loss(recipe),
        "stored labels": _labels(recipe, images_per_second),
        "cost": _cost(recipe, images_per_second),
        "device": _columns(suitability.describe(recipe)),
    }
    blocks = ["\n  ".join([subject, *lines]) for subject, lines in subjects.items() if lines]
    return "\n\n".join(blocks)


def _columns(pairs: dict[str, str]) -> list[str]:
    return [f"{name:<{_WIDTH}}{value}" for name, value in pairs.items()]


def _run(recipe: Recipe) -> list[str]:
    config, durations, model = recipe.config, recipe.durations, recipe.model
    batch_size, repeats = durations.batch_size, config.input.repeats
    distinct = data.distinct_images_per_epoch(durations.records, batch_size, repeats)
    views = durations.total_steps * batch_size / recipe.records
    devices = f"{recipe.device_count} device{'s' if recipe.device_count > 1 else ''}"
    batch = (
        f"{batch_size:,} images per step ({batch_size // recipe.device_count:,} per device, "
        f"{devices})"
    )
    if config.step.accum_steps > 1:
        batch += f" in {config.step.accum_steps} micro-batches"
    times = "once" if repeats == 1 else f"{repeats} times (repeated augmentation)"
    epochs = durations.epoch(durations.total_steps)
    pairs = {
        "model": f"{config.model.name} at {'x'.join(map(str, model.image_size))}, "
        f"{model.count().parameters:,} parameters, {model.dtype}",
        "start from": config.init or "random weights",
        "data": f"{recipe.records:,} images, {recipe.num_classes:,} classes; images longer than "
        f"{config.input.canvas} pixels are shrunk before the crop, which costs small crops detail",
        "batch": batch,
        "epoch": f"{durations.steps_per_epoch:,} steps; {distinct:,} distinct images, each {times}",
        "length": f"{durations.total_steps:,} steps = {epochs:g} epochs; each image is seen "
        f"{views:.4g} times on average",
    }
    if config.step.ema_decay:
        constant = 1 / (1 - config.step.ema_decay)
        pairs["EMA"] = f"decay {config.step.ema_decay:g}, an average over {constant:,.0f} steps"
    if not config.step.train_mode:
        pairs["mode"] = "evaluation: no stochastic depth, no dropout, BatchNorm statistics fixed"
    return _columns(pairs)


def _learning_rate(recipe: Recipe) -> list[str]:
    durations, options, schedule = recipe.durations, recipe.config.schedule, recipe.schedule
    scaled = "not scaled"
    if options.scale_by_batch is not None:
        scaled = f"= {options.base_lr:g} x {durations.batch_size:,} / {options.scale_by_batch}"
    first = range(min(7, math.ceil(durations.total_steps / durations.steps_per_epoch)))
    rates = [f"{float(schedule(epoch * durations.steps_per_epoch)):.4g}" for epoch in first]
    return _columns(
        {
            "curve": builders.narrate(SCHEDULES, options.kind, options),
            "warm-up": f"{options.warmup_epochs:g} epochs "
            f"({options.warmup_epochs * durations.steps_per_epoch:,.0f} steps) from "
            f"{options.warmup_lr:g}",
            "peak": f"{schedule.peak:g} {scaled}",
            "first epochs": "at the start of each: " + ", ".join(rates),
            "last step": f"{float(schedule(durations.total_steps - 1)):.4g}",
        }
    )


def _optimizer(recipe: Recipe) -> list[str]:
    options = recipe.config.optim
    clip = "none" if options.clip_norm is None else f"global norm {options.clip_norm:g}"
    of_groups = {key: options[key] for key in builders.keywords(make_rules)}
    groups = optim.decay_groups(recipe.params, recipe.model, **of_groups)
    kind = builders.narrate(OPTIMIZERS, options.name, options)
    return [*_columns({"kind": kind, "clipping": clip}), *optim.format_groups(groups).splitlines()]


def _augmentation(recipe: Recipe) -> list[str]:
    lines: list[str] = []
    for stage in augment.describe(recipe.supplied(), recipe.config.augment):
        values = ", ".join(f"{k} {builders.plain(value)}" for k, value in stage.options.items())
        first, *more = [*stage.texts, *([values] if values else [])]
        lines += _columns({stage.name: first}) + [" " * _WIDTH + text for text in more]
    return lines


def _loss(recipe: Recipe) -> list[str]:
    options = recipe.config.loss
    labels = builders.narrate(losses.LABEL_LOSSES, options.base, options)
    pairs = {"labels": f"{labels}, on the {_head(losses.LABEL_HEADS[options.label_on])}"}
    if recipe.teacher is None:
        return _columns(pairs | {"teacher": "none"})
    distillation = builders.narrate(losses.DISTILLATION_LOSSES, options.distillation, options)
    pairs |= {
        "distillation": f"{distillation}, on the "
        f"{_head(losses.DISTILLED_HEADS[options.distill_on])}",
        "weights": f"{1 - options.alpha:g} labels + {options.alpha:g} teacher",
        "teacher": recipe.teacher.description,
    }
    section = recipe.config.teacher
    if recipe.teacher.stored is None:
        pairs["teacher input"] = (
            "the student's tensor (same crop, operations, erasing and mix) at "
            f"{section.input_size or recipe.image_size} pixels, dtype {section.dtype}, "
            "evaluation mode"
        )
    return _columns(pairs)


def _labels(recipe: Recipe, images_per_second: float | None) -> list[str]:
    """Size of the labels of a distilled run, what they cost once, and what they save each time."""
    if recipe.teacher is None or recipe.num_classes > teacher_lib.MOST_CLASSES:
        return []
    section, batch_size = recipe.config.teacher, recipe.durations.batch_size
    stored, model = recipe.teacher.stored, recipe.teacher.model
    if stored is not None:
        kind, macs = stored.kind, stored.teacher.get("macs_per_image")
    else:
        make = builders.bind(teacher_lib.make_kind, section)
        kind, macs = make(recipe.num_classes, recipe.choice_only), model and model.count().macs
    each = kind.row.itemsize * batch_size
    epochs = recipe.durations.epoch(recipe.label_steps)
    pairs = {"size": f"{kind.description}: {_si(each * recipe.label_steps)}B for {epochs:g} epochs"}
    if recipe.label_period:
        pairs["repeats"] = f"epoch e has the images and labels of epoch e modulo {epochs:g}"
    pairs["reading"] = f"{each:,} bytes per step"
    if images_per_second:
        pairs["reading"] += f", {_si(each * images_per_second / batch_size)}B per second"
    if macs is not None:
        student = costs.step_macs(recipe.model, batch_size=batch_size)["student"]
        per_step = macs * batch_size
        pairs["cost once"] = f"{_si(per_step * recipe.label_steps)} multiply-accumulates"
        share = per_step / (per_step + student)
        run = _si(per_step * recipe.durations.total_steps)
        pairs["saves"] = f"{run} per run, {share:.0%} of the work of one with a live teacher"
    if stored is None:
        pairs["how"] = "`deit-jax labels` or teacher.record=DIR, then teacher.labels=DIR"
    return _columns(pairs)


def _head(head: Any) -> str:
    return builders.headline(head).lower()


def _cost(recipe: Recipe, images_per_second: float | None) -> list[str]:
    durations = recipe.durations
    teacher = recipe.teacher and recipe.teacher.model
    macs = costs.step_macs(recipe.model, batch_size=durations.batch_size, teacher=teacher)
    each = ", ".join(f"{who} {_si(count)}" for who, count in macs.items())
    if recipe.teacher and teacher is None and recipe.teacher.stored is None:
        each += ", teacher unknown"
    memory = costs.step_memory(recipe)
    unit, one = ("GiB", 2**30) if memory.total >= 2**30 else ("MiB", 2**20)
    parts = ", ".join(f"{name} {size / one:.2f}" for name, size in memory.parts.items())
    pairs = {
        "per step": f"{each} multiply-accumulates; whole run "
        f"{_si(sum(macs.values()) * durations.total_steps)}",
        "memory": f"at most about {memory.total / one:.1f} {unit} per device: {parts}",
    }
    if images_per_second:
        hours = durations.total_steps * durations.batch_size / images_per_second / 3600
        pairs["time"] = f"{hours:,.3g} hours at {images_per_second:,.0f} images per second"
    return _columns(pairs)


def _si(count: float) -> str:
    """Three digits and a prefix, `54.2 T`."""
    power = min(max(int(math.log10(count)) // 3, 0), 6) if count >= 1 else 0
    return f"{float(f'{count / 1000**power:.3g}'):g} {' kMGTPE'[power]}".rstrip()
