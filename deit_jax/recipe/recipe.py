"""The recipe of a run: what a resolved config decides before data or weights are read."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import optax

from deit_jax import augment, builders, data, losses, models, optim
from deit_jax.errors import ConfigError, Problems
from deit_jax.recipe.durations import Durations, make_durations
from deit_jax.teacher.model import TeacherModel, find_teacher_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run is built from, and what `deit-jax explain` describes.

    Attributes:
      config: complete config, see `config.load_config`.
      records: images in the training split.
      num_classes: classes of the data.
      device_count: devices of the whole run.
      device: one of them, see `models.accelerator`.
      durations: lengths and cadences in steps.
      model: the student.
      params: its parameters, abstract.
      mix_group: rows that share a mix, None when nothing is mixed.
      loss_fn: see `losses.make_loss`.
      schedule: the learning rate by step.
      tx: the optimizer.
      teacher: the teacher's model, None for a run without one.
    """

    config: ml_collections.ConfigDict
    records: int
    num_classes: int
    device_count: int
    device: Any
    durations: Durations
    model: models.Model
    params: Any
    mix_group: int | None
    loss_fn: Callable
    schedule: optim.Schedule
    tx: optax.GradientTransformation
    teacher: TeacherModel | None

    @property
    def image_size(self) -> int:
        """Side in pixels of the student's images."""
        return self.model.image_size[0]

    @property
    def choice_only(self) -> bool:
        """Whether the distillation loss uses the teacher's first choice alone."""
        return self.config.loss.distillation in losses.CHOICE_ONLY

    @property
    def label_period(self) -> int | None:
        """Steps after which images and the teacher's labels repeat; None: never."""
        if self.config.loss.distillation == "none" or self.config.teacher.label_epochs is None:
            return None
        return self.config.teacher.label_epochs * self.durations.steps_per_epoch

    @property
    def label_steps(self) -> int:
        """Steps whose labels differ."""
        total = self.durations.total_steps
        return min(self.label_period or total, total)

    def supplied(self, mesh: jax.sharding.Mesh | None = None) -> augment.Supplied:
        """What the stages of the augmentation are given."""
        supplied = _supplied(self.config, self.image_size, self.num_classes)._replace(mesh=mesh)
        if supplied.repeats == 1:
            return supplied
        orders = data.canvas_orders(supplied.batch_size, supplied.repeats, self.mix_group)
        return supplied._replace(canvas_orders=orders)


def make_recipe(
    config: ml_collections.ConfigDict,
    *,
    records: int,
    num_classes: int,
    device_count: int = 1,
    device: Any = None,
    problems: Problems | None = None,
) -> Recipe | None:
    """The recipe of a resolved config.

    Args:
      device: what the run is for, see `models.accelerator`; None for jax's first device.
      problems: where mistakes are collected, so that the caller can add its own and raise
        them together; None raises them here.

    Returns:
      None if `problems` was given and there are any.

    Raises:
      ConfigError: all that is wrong, a line or more each.
    """
    own = problems is None
    problems = problems or Problems(config)
    parts: dict[str, Any] = {}
    durations: Any = None
    model: Any = None
    with problems.section("train"):
        durations = make_durations(records, config.input.repeats, **config.train)
    with problems.section("model"):
        model = models.create_model(num_classes=num_classes, device=device, **config.model)
        if device is not None and config.model.get("attention") in ("cudnn", "pallas"):
            # It is there, but perhaps not here, where the model is only traced.
            model = model.clone(attention="auto")
    with problems.section("loss"):
        parts["loss_fn"] = losses.make_loss(**config.loss)
    with problems.section("schedule"):
        if durations:
            parts["schedule"] = optim.make_schedule(
                durations.batch_size,
                durations.steps_per_epoch,
                durations.total_steps,
                **config.schedule,
            )
    with problems.section("augment"):
        side = model.image_size[0] if model else 224
        if config.train.batch_size > 0:
            parts["mix_group"] = find_mix_group(config)
            augment.make_augment(_supplied(config, side, num_classes), **config.augment)
    if model:
        parts |= _parts_for(model, config, parts.get("schedule"), device, problems)
    _check_values(config, problems)
    if own:
        problems.raise_any()
    if problems.messages:
        return None
    return Recipe(
        config=config,
        records=records,
        num_classes=num_classes,
        device_count=device_count,
        device=device or jax.devices()[0],
        durations=durations,
        model=model,
        **parts,
    )


def _parts_for(
    model: models.Model,
    config: ml_collections.ConfigDict,
    schedule: Any,
    device: Any,
    problems: Problems,
) -> dict[str, Any]:
    """What depends on the model: its parameters, their optimizer, the teacher."""
    parts: dict[str, Any] = {"params": models.abstract_variables(model)["params"]}
    rate = schedule or (lambda step: 0.0)
    with problems.section("optim"):
        parts["tx"] = optim.make_optimizer(parts["params"], rate, model, **config.optim)
    with problems.section("loss"):
        _check_heads(config, model)
    with problems.section("teacher"):
        parts["teacher"] = find_teacher_model(config, model, device)
    return parts


def find_mix_group(config: ml_collections.ConfigDict) -> int | None:
    """Rows that share a mix; None when nothing is mixed."""
    resolve = builders.bind(augment.resolve_mix_group, config.augment)
    return resolve(config.train.batch_size, config.input.repeats)


def _supplied(config: ml_collections.ConfigDict, side: int, num_classes: int) -> augment.Supplied:
    return augment.Supplied(
        image_size=side,
        num_classes=num_classes,
        batch_size=config.train.batch_size,
        repeats=config.input.repeats,
    )


def _check_heads(config: ml_collections.ConfigDict, model: models.Model) -> None:
    distilling = config.loss.distillation != "none"
    if distilling and config.loss.distill_on == "token" and "dist" not in model.heads:
        raise ConfigError(
            f"distill_on='token' needs a model with a distillation token, and "
            f"{config.model.name} has none; known with one: "
            f"{', '.join(models.list_models('*distilled*'))}; or set --config.loss.distill_on=class"
        )


def _check_values(config: ml_collections.ConfigDict, problems: Problems) -> None:
    """What no builder sees before the first step."""
    if not 0 <= config.step.ema_decay < 1:
        problems.add(
            f"config.step.ema_decay must be at least 0 (no EMA) and below 1, "
            f"not {config.step.ema_decay}"
        )
    warmup, length = config.schedule.warmup_epochs, config.train.total_epochs
    # A run cut short by `total_steps`, to try something, may end within its warm-up.
    if config.train.total_steps is None and math.inf > warmup > length > 0:
        problems.add(
            f"config.schedule.warmup_epochs must be at most config.train.total_epochs "
            f"({length:g}), not {warmup:g}: the learning rate would never reach its peak"
        )
    if config.step.accum_steps < 1:
        problems.add(f"config.step.accum_steps must be at least 1, not {config.step.accum_steps}")
    if config.step.accum_steps > config.train.batch_size > 0:
        problems.add(
            f"config.step.accum_steps must be at most {config.train.batch_size}, the size of the "
            f"batch, not {config.step.accum_steps}"
        )
    if not 0 <= config.seed < 2**32:
        problems.add(f"config.seed must be 0 to {2**32 - 1}, not {config.seed}")
    if config.init_which not in ("latest", "best") and not config.init_which.isdecimal():
        problems.add(f"config.init_which must be latest, best or a step, not {config.init_which!r}")
