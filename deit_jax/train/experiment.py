"""From a resolved config to everything a run needs, with all mistakes reported together."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from deit_jax import augment, data, losses, models, optim, pretrained, rng, sharding
from deit_jax.errors import ConfigError, Problems
from deit_jax.evaluation.evaluate import make_eval_step
from deit_jax.optim import schedules
from deit_jax.recipe import recipe
from deit_jax.recipe.durations import Plan, make_plan
from deit_jax.teacher import Teacher, make_teacher
from deit_jax.train import step as step_lib

IMAGENET_IMAGES = 1_281_167


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How evaluation is done.

    Attributes:
      batch_size: rows of the global batch.
      image_size: side in pixels at which the model sees the image.
      crop_ratio: the short side is resized to image_size / crop_ratio before the crop.
      canvas: side of the canvases in pixels.
      agreement: also ask the teacher, and report who agrees with whom (paper, Table 4).
    """

    batch_size: int
    image_size: int
    crop_ratio: float
    canvas: int
    agreement: bool


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run ready to start; nothing random has been drawn and nothing is on a device."""

    config: ml_collections.ConfigDict
    data: data.Data
    plan: Plan
    mesh: jax.sharding.Mesh
    mix_group: int | None
    model: models.Model
    teacher: Teacher | None
    start: pretrained.Adapted | None
    tx: Any
    schedule: Callable
    augment_fn: Callable
    loss_fn: Callable
    evaluation: Evaluation
    abstract_params: Any

    @property
    def canvases(self) -> int:
        """Rows of the host batch over all processes; fewer than the batch when images repeat."""
        return data.canvas_count(self.plan.batch_size, self.config.input.repeats, self.mesh.size)

    def make_train_step(self) -> Callable:
        """`step(state, teacher variables, batch) -> (state, metrics)`, see `steps`."""
        return step_lib.make_train_step(
            model=self.model,
            augment_fn=self.augment_fn,
            loss_fn=self.loss_fn,
            tx=self.tx,
            schedule=self.schedule,
            base_key=rng.base_key(self.config.seed),
            teacher_fn=self.teacher.fn if self.teacher else None,
            **self.config.step,
        )

    def make_eval_step(self) -> Callable:
        """`step(variables, teacher variables, batch) -> sums`, see `evaluate`."""
        transform = augment.make_eval_transform(
            image_size=self.evaluation.image_size,
            crop_ratio=self.evaluation.crop_ratio,
            mean=self.config.augment.mean,
            std=self.config.augment.std,
        )
        asked = self.teacher is not None and self.evaluation.agreement
        return make_eval_step(
            model=self.model, transform=transform, teacher_fn=self.teacher.fn if asked else None
        )

    def train_batches(self, *, start_step: int = 0, rows: Any = None) -> data.BatchIterator:
        """Host batches from `start_step` on, the canvas rows that this process holds."""
        return data.train_batches(
            self.data.train,
            batch_size=self.plan.batch_size,
            mix_group=self.mix_group,
            seed=self.config.seed,
            start_step=start_step,
            device_count=self.mesh.size,
            rows=rows,
            window_shards=self.config.data.window_shards,
            **self.config.input,
        )

    def eval_batches(self, *, rows: Any = None) -> data.BatchIterator:
        """Host batches of the evaluation split, the rows that this process holds."""
        e = self.evaluation
        return data.eval_batches(
            self.data.eval,
            batch_size=e.batch_size,
            canvas=e.canvas,
            image_size=e.image_size,
            crop_ratio=e.crop_ratio,
            rows=rows,
            threads=self.config.input.threads,
            prefetch=self.config.input.prefetch,
            max_corrupt_share=self.config.input.max_corrupt_share,
        )


def make_evaluation(
    *,
    image_size: int,
    batch_size: int = 256,
    crop_ratio: float = 0.875,
    canvas: int = 512,
    agreement: bool = True,
) -> Evaluation:
    """The `eval` section; `image_size` is the student's.

    `crop_ratio` is .875 for DeiT (1.0 for DeiT-III); timm's own default of .9 gives
    slightly other accuracies for the same weights.
    """
    if not 0 < crop_ratio <= 1:
        raise ConfigError(f"crop_ratio must be above 0 and at most 1, not {crop_ratio}")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    canvas = max(canvas, math.ceil(image_size / crop_ratio))
    return Evaluation(batch_size, image_size, crop_ratio, canvas, agreement)


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the data, builds the model and checks everything that can be checked before training.

    Raises:
      ConfigError: all that is wrong, a line or more each.
    """
    problems = Problems(config)

    def check(section: str, make: Callable, *args: Any, **options: Any) -> Any:
        with problems.section(section):
            return make(*args, **options)

    opened = check("data", data.open_data, **config.data)
    mesh = check("mesh", sharding.make_mesh, **config.mesh)
    num_classes = opened.num_classes if opened else 1000
    model = check("model", models.create_model, num_classes=num_classes, **config.model)
    image_size = model.image_size[0] if model else 224
    evaluation = check("eval", make_evaluation, image_size=image_size, **config.eval)
    loss_fn = check("loss", losses.make_loss, **config.loss)
    teacher = _teacher(problems, config, num_classes, image_size)
    start = check("init", _start_weights, config, model) if config.init and model else None
    _check_heads(problems, config, model)
    _check_values(problems, config)
    if mesh:
        _check_divisible(problems, config, mesh)
    mix_group = check("augment", recipe.mix_group, config)
    augment_fn = None
    options = dict(config.augment) | {"mix_group": mix_group or None}
    del options["mix_group_limit"]
    if mix_group is not None:
        augment_fn = check(
            "augment",
            augment.make_augment,
            image_size=image_size,
            num_classes=num_classes,
            mesh=mesh,
            **options,
        )
    # Without data its size is unknown; the published one serves to check the rest.
    records = len(opened.train) if opened else IMAGENET_IMAGES
    plan = check("train", make_plan, records=records, **config.train)
    schedule = tx = abstract_params = None
    if plan:
        schedule = check("schedule", _schedule, config, plan)
    if model:
        abstract_params = jax.eval_shape(
            lambda key: models.init_variables(model, key), jax.random.key(0)
        )["params"]
        tx = check(
            "optim",
            optim.make_optimizer,
            params=abstract_params,
            schedule=schedule or (lambda step: 0.0),
            **config.optim,
        )
    problems.raise_any()
    built = Experiment(
        config=config,
        data=opened,
        plan=plan,
        mesh=mesh,
        mix_group=mix_group or None,
        model=model,
        teacher=teacher,
        start=start,
        tx=tx,
        schedule=schedule,
        augment_fn=augment_fn,
        loss_fn=loss_fn,
        evaluation=evaluation,
        abstract_params=abstract_params,
    )
    # Both check their options when made, and read nothing before they are asked.
    for section, make in (("input", built.train_batches), ("eval", built.eval_batches)):
        batches = check(section, make)
        if batches is not None:
            batches.close()
    problems.raise_any()
    return built


def _teacher(
    problems: Problems, config: ml_collections.ConfigDict, num_classes: int, image_size: int
) -> Teacher | None:
    if config.loss.distillation == "none":
        return None
    with problems.section("teacher"):
        return make_teacher(
            num_classes=num_classes,
            image_size=image_size,
            mean=config.augment.mean,
            std=config.augment.std,
            **config.teacher,
        )


def _schedule(config: ml_collections.ConfigDict, plan: Plan) -> Callable:
    return schedules.make_schedule(
        batch_size=plan.batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        total_steps=plan.total_steps,
        **config.schedule,
    )


def model_kwargs(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `create_model` takes beside the name and the number of classes, as plain values."""
    return {key: value for key, value in config.model.to_dict().items() if key != "name"}


def _start_weights(config: Any, model: models.Model) -> pretrained.Adapted:
    loaded = pretrained.load_checkpoint(config.init, ema=config.init_ema, which=config.init_which)
    template = models.init_variables(
        model, rng.step_key(rng.base_key(config.seed), rng.Purpose.INIT, 0)
    )
    return pretrained.adapt(loaded, template, model=model, drop_head=config.init_drop_head)


def _check_divisible(problems: Problems, config: Any, mesh: jax.sharding.Mesh) -> None:
    devices, parts = mesh.size, config.step.accum_steps
    for what, rows, multiple in (
        ("config.train.batch_size", config.train.batch_size, devices * parts),
        ("config.eval.batch_size", config.eval.batch_size, devices),
    ):
        if multiple < 1 or rows % multiple:
            multiple = max(multiple, 1)
            near = [n for n in (rows // multiple * multiple, -(-rows // multiple) * multiple) if n]
            of = f"{devices} devices" + (f" x {parts} accumulation steps" if parts != 1 else "")
            problems.add(
                f"{what}={rows} is not divisible by {of}; "
                f"near ones: {', '.join(map(str, sorted(set(near))))}"
            )


def _check_values(problems: Problems, config: Any) -> None:
    """What no builder sees before the first step."""
    with problems.section("step"):
        recipe.check_ema_decay(config.step.ema_decay)
    if not 0 <= config.seed < 2**32:
        problems.add(f"config.seed={config.seed}; 0 to {2**32 - 1}")


def _check_heads(problems: Problems, config: Any, model: Any) -> None:
    distilled = getattr(model, "distilled", False)
    if config.loss.distillation != "none" and config.loss.distill_on == "token" and not distilled:
        if model is not None:
            problems.add(
                f"config.loss.distill_on='token' needs a model with a distillation token; "
                f"{config.model.name} has none. Known with one: "
                f"{', '.join(models.list_models('*distilled*'))}; or set "
                "--config.loss.distill_on=class"
            )
