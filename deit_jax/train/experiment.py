"""From a resolved config to everything a run needs, with all mistakes reported together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from deit_jax import augment, builders, data, models, pretrained, rng, sharding
from deit_jax.data import BatchIterator
from deit_jax.errors import Problems
from deit_jax.evaluation.evaluate import Evaluation, make_eval_step, make_evaluation
from deit_jax.recipe.recipe import Recipe, make_recipe
from deit_jax.teacher import Teacher, make_teacher
from deit_jax.train import nonfinite
from deit_jax.train import step as step_lib

# Sizes of ImageNet-1k, to check the rest of a config whose data cannot be opened.
_RECORDS, _CLASSES = 1_281_167, 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run ready to start: its recipe, with data and weights opened; nothing is on a device.

    Attributes:
      recipe: what the run does.
      data: the opened data set.
      mesh: all devices.
      teacher: with its weights; None for a run without one.
      start: the weights that config.init names, adapted to the model; None for random ones.
      augment_fn: see `augment.make_augment`.
      evaluation: see `Evaluation`.
    """

    recipe: Recipe
    data: data.Data
    mesh: jax.sharding.Mesh
    teacher: Teacher | None
    start: pretrained.Adapted | None
    augment_fn: Callable
    evaluation: Evaluation

    @property
    def canvases(self) -> int:
        """Rows of the host batch over all processes; fewer than the batch when images repeat."""
        return data.canvas_count(
            self.recipe.durations.batch_size, self.recipe.config.input.repeats, self.mesh.size
        )

    def make_train_step(self) -> Callable:
        """`step(state, teacher variables, batch) -> (state, metrics)`, see `train.step`."""
        recipe = self.recipe
        return step_lib.make_train_step(
            recipe.model,
            self.augment_fn,
            recipe.loss_fn,
            recipe.tx,
            recipe.schedule,
            rng.base_key(recipe.config.seed),
            self.teacher.fn if self.teacher else None,
            nonfinite.make_limit(**recipe.config.nonfinite),
            **recipe.config.step,
        )

    def make_eval_step(self) -> Callable:
        """`step(variables, teacher variables, batch) -> sums`, see `evaluation.evaluate`."""
        transform = augment.make_eval_transform(
            image_size=self.evaluation.image_size,
            crop_ratio=self.evaluation.crop_ratio,
            mean=self.recipe.config.augment.mean,
            std=self.recipe.config.augment.std,
        )
        teacher = self.teacher if self.evaluation.agreement else None
        return make_eval_step(
            model=self.recipe.model,
            transform=transform,
            teacher_fn=teacher.fn if teacher else None,
        )

    def train_batches(self, *, start_step: int = 0, rows: Any = None) -> BatchIterator:
        """Host batches from `start_step` on, the canvas rows of this process."""
        recipe = self.recipe
        return data.train_batches(
            self.data.train,
            batch_size=recipe.durations.batch_size,
            mix_group=recipe.mix_group,
            seed=recipe.config.seed,
            start_step=start_step,
            device_count=self.mesh.size,
            rows=rows,
            **recipe.config.input,
        )

    def eval_batches(self, *, rows: Any = None) -> BatchIterator:
        """Host batches of the evaluation split, the rows of this process."""
        e = self.evaluation
        make = builders.bind(data.eval_batches, self.recipe.config.input)
        return make(
            self.data.eval,
            batch_size=e.batch_size,
            canvas=e.canvas,
            image_size=e.image_size,
            crop_ratio=e.crop_ratio,
            rows=rows,
        )


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the data, makes the recipe, and checks everything that can be checked before training.

    Raises:
      ConfigError: all that is wrong, a line or more each.
    """
    problems = Problems(config)
    opened: Any = None
    mesh: Any = None
    evaluation: Any = None
    teacher = start = None
    with problems.section("data"):
        opened = data.open_data(**config.data)
    with problems.section("mesh"):
        mesh = sharding.make_mesh(**config.mesh)
    recipe: Any = make_recipe(
        config,
        records=len(opened.train) if opened else _RECORDS,
        num_classes=opened.num_classes if opened else _CLASSES,
        device_count=mesh.size if mesh else jax.device_count(),
        problems=problems,
    )
    with problems.section("eval"):
        evaluation = make_evaluation(recipe.image_size if recipe else 224, **config.eval)
    if mesh:
        _check_divisible(problems, config, mesh)
    if recipe:
        with problems.section("teacher"):
            teacher = _load_teacher(recipe)
        with problems.section("init"):
            start = _start_weights(recipe)
    problems.raise_any()
    experiment = Experiment(
        recipe=recipe,
        data=opened,
        mesh=mesh,
        teacher=teacher,
        start=start,
        augment_fn=augment.make_augment(recipe.supplied(mesh), **config.augment),
        evaluation=evaluation,
    )
    # Both check their options when made, and read nothing before the first batch is taken.
    with problems.section("input"):
        experiment.train_batches().close()
    with problems.section("eval"):
        experiment.eval_batches().close()
    problems.raise_any()
    return experiment


def model_kwargs(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What `create_model` takes beside the name and the number of classes, as plain values."""
    return {key: value for key, value in config.model.to_dict().items() if key != "name"}


def _load_teacher(recipe: Recipe) -> Teacher | None:
    config = recipe.config
    if config.loss.distillation == "none":
        return None
    statistics = config.augment.mean, config.augment.std
    return make_teacher(recipe.num_classes, recipe.image_size, *statistics, **config.teacher)


def _start_weights(recipe: Recipe) -> pretrained.Adapted | None:
    config = recipe.config
    if not config.init:
        return None
    loaded = pretrained.load_checkpoint(config.init, ema=config.init_ema, which=config.init_which)
    key = rng.step_key(rng.base_key(config.seed), rng.Purpose.INIT, 0)
    template = models.init_variables(recipe.model, key)
    return pretrained.adapt(loaded, template, model=recipe.model, drop_head=config.init_drop_head)


def _check_divisible(
    problems: Problems, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> None:
    devices, micro_batches = mesh.size, max(config.step.accum_steps, 1)
    of = f"{devices} devices"
    with_accumulation = f"{of} x {micro_batches} accumulation steps" if micro_batches > 1 else of
    for key, rows, multiple, divisor in (
        ("train", config.train.batch_size, devices * micro_batches, with_accumulation),
        ("eval", config.eval.batch_size, devices, of),
    ):
        if rows % multiple:
            near = {rows // multiple * multiple, -(-rows // multiple) * multiple} - {0}
            problems.add(
                f"config.{key}.batch_size must be divisible by {divisor}, and {rows} is not; "
                f"nearest: {', '.join(map(str, sorted(near)))}"
            )
