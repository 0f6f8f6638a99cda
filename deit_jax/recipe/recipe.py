"""A resolved config with the sizes that it does not hold, enough to tell what the run will be."""

import dataclasses
import math
from typing import Any

import jax
import ml_collections

from deit_jax import augment, data, models
from deit_jax.errors import ConfigError
from deit_jax.optim import param_groups, schedules
from deit_jax.recipe import costs
from deit_jax.recipe.durations import Plan, make_plan

# Batches of canvases that lie on the device at a time: the one in use and the next.
_CANVAS_BATCHES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A resolved config and the sizes that it does not hold.

    Attributes:
      config: complete config, see `config.load_config`.
      records: images in the training split.
      num_classes: classes of the data.
      device_count: devices of the whole run.
      model: the student.
      params: its parameters, abstract.
      plan: durations in steps.
      mix_group: rows that share a mix, None when nothing is mixed.
      teacher: the teacher's model, None without one or when the config does not name it.
    """

    config: ml_collections.ConfigDict
    records: int
    num_classes: int
    device_count: int
    model: models.Model
    params: Any
    plan: Plan
    mix_group: int | None
    teacher: models.Model | None


def make_recipe(
    config: ml_collections.ConfigDict, *, records: int, num_classes: int, device_count: int = 1
) -> Recipe:
    """The recipe of a resolved config; reads neither data nor weights.

    Raises:
      ConfigError: the model, the plan or the mix groups cannot be had.
    """
    check_ema_decay(config.step.ema_decay)
    model = models.create_model(num_classes=num_classes, **config.model)
    abstract = jax.eval_shape(lambda: models.init_variables(model, jax.random.key(0)))
    teacher = None
    if config.loss.distillation != "none" and config.teacher.name:
        size = config.teacher.input_size or model.image_size[0]
        teacher = models.create_model(config.teacher.name, num_classes=num_classes, image_size=size)
    return Recipe(
        config=config,
        records=records,
        num_classes=num_classes,
        device_count=device_count,
        model=model,
        params=abstract["params"],
        plan=make_plan(records=records, **config.train),
        mix_group=mix_group(config) or None,
        teacher=teacher,
    )


def check_ema_decay(decay: float) -> None:
    """Raises ConfigError unless a weight average with this decay moves."""
    if not 0 <= decay < 1:
        raise ConfigError(
            f"config.step.ema_decay={decay}; below 1 and at least 0, which is no average"
        )


def mix_group(config: ml_collections.ConfigDict) -> int:
    """Rows that share a mix; 0 when nothing is mixed."""
    options = config.augment
    mixing = options.mixup or options.cutmix or options.cutmix_minmax
    if not mixing or not options.mix_prob:
        return 0
    return augment.resolve_mix_group(
        config.train.batch_size,
        config.input.repeats,
        options.mix_group,
        mix_group_limit=options.mix_group_limit,
    )


def schedule_options(recipe: Recipe) -> dict[str, Any]:
    """Everything that `make_schedule` takes."""
    plan = recipe.plan
    return dict(recipe.config.schedule) | {
        "batch_size": plan.batch_size,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
    }


def peak_lr(recipe: Recipe) -> float:
    """The learning rate at the end of the warm-up."""
    options = recipe.config.schedule
    return schedules.peak_lr(
        base_lr=options.base_lr,
        scale_by_batch=options.scale_by_batch,
        batch_size=recipe.plan.batch_size,
    )


def estimate_memory(recipe: Recipe) -> costs.Memory:
    """Memory of a training step on one device."""
    config, plan, devices = recipe.config, recipe.plan, recipe.device_count
    canvases = data.canvas_count(plan.batch_size, config.input.repeats, devices)
    return costs.step_memory(
        recipe.model,
        recipe.params,
        rows=math.ceil(plan.batch_size / devices / config.step.accum_steps),
        canvas_bytes=_CANVAS_BATCHES * canvases / devices * config.input.canvas**2 * 3,
        masks=param_groups.Masks.make(
            recipe.params,
            decay_dist_token=config.optim.decay_dist_token,
            layer_decay=config.optim.layer_decay,
            trainable=config.optim.trainable,
        ),
        moments=1 if config.optim.name == "sgd" else 2,
        ema=bool(config.step.ema_decay),
        fsdp=config.mesh.fsdp,
        teacher_parameters=models.count(recipe.teacher).parameters if recipe.teacher else 0,
    )
