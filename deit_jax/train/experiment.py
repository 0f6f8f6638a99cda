"""From a resolved config to everything a run needs, with all mistakes reported together."""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from deit_jax import augment, builders, checkpoint, data, models, pretrained, rng
from deit_jax.data import BatchIterator
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError, Problems, unknown
from deit_jax.evaluation import heads
from deit_jax.evaluation.evaluate import Evaluation, make_eval_step
from deit_jax.recipe import few_photos, hardware
from deit_jax.recipe.recipe import Recipe, make_recipe
from deit_jax.teacher import Kind, LabeledBatches, Recorder, StoredLabels, Teacher
from deit_jax.tracking import profiler
from deit_jax.train import answers, loss_scale, nonfinite, teaching
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
      teacher: with its weights; None for a run without one, or with stored labels.
      labels: the stored labels of a run that has them.
      record: what is recorded of the teacher's answers; None for nothing.
      start: the weights that config.init names, adapted to the model; None for random ones.
      augment_fn: see `augment.make_augment`.
      evaluation: see `Evaluation`.
      checkpointing: the options of `checkpoint.Checkpointer`.
      max_nonfinite: see `nonfinite.make_limit`.
      span: steps to profile; None for none.
    """

    recipe: Recipe
    data: data.Data
    mesh: jax.sharding.Mesh
    teacher: Teacher | None
    labels: StoredLabels | None
    record: Kind | None
    start: pretrained.Adapted | None
    augment_fn: Callable
    evaluation: Evaluation
    checkpointing: dict[str, Any]
    max_nonfinite: int
    span: profiler.Span | None

    @property
    def batch_sharding(self) -> jax.sharding.NamedSharding:
        """Rows of batches over all devices."""
        return sharding.batch_sharding(self.mesh)

    def place_teacher(self) -> Any:
        """The teacher's variables, whole on every device; None for a run without one."""
        everywhere = sharding.replicated(self.mesh)
        return self.teacher and jax.device_put(self.teacher.variables, everywhere)

    def ideal_step_seconds(self) -> float | None:
        """See `hardware.ideal_step_seconds`; None where a part of the weights is trained."""
        if self.recipe.config.optim.trainable != "all":
            # The formula counts a whole backward pass.
            return None
        return hardware.ideal_step_seconds(
            self.recipe.model,
            batch_size=self.recipe.durations.batch_size,
            teacher=self.teacher.model if self.teacher else None,
            devices=list(self.mesh.devices.flat),
        )

    @property
    def label_options(self) -> answers.Labels:
        """See `answers.Labels`."""
        stored = self.labels and self.labels.kind
        return teaching.step_labels(self.recipe, self.mesh, stored, self.record)

    def start_recorder(self, print_line: Callable[[str], None]) -> Recorder | None:
        """See `teaching.start_recorder`."""
        what = self.recipe, self.data.train, self.teacher, self.record
        return teaching.start_recorder(*what, print_line)

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
            self.max_nonfinite,
            self.label_options,
            **recipe.config.step,
        )

    def make_eval_step(self) -> Callable:
        """`step(variables, teacher variables, batch) -> sums`, see `evaluation.evaluate`."""
        e, statistics = self.evaluation, self.recipe.config.augment
        transform = e.make_transform(statistics.mean, statistics.std)
        teacher_fn = self.teacher.fn if self.teacher and e.agreement else None
        return make_eval_step(model=self.recipe.model, transform=transform, teacher_fn=teacher_fn)

    def train_batches(self, *, start_step: int = 0) -> BatchIterator | LabeledBatches:
        """Host batches from `start_step` on, the canvas rows of this process."""
        recipe = self.recipe
        batch_size, devices = recipe.durations.batch_size, self.mesh.size
        canvases = data.canvas_count(batch_size, recipe.config.input.repeats, devices)
        batches = data.train_batches(
            self.data.train,
            batch_size=batch_size,
            mix_group=recipe.mix_group,
            seed=recipe.config.seed,
            start_step=start_step,
            device_count=devices,
            rows=sharding.local_rows(self.batch_sharding, canvases),
            period=recipe.label_period,
            **recipe.config.input,
        )
        if self.labels is None:
            return batches
        rows = sharding.local_rows(self.batch_sharding, batch_size)
        return self.labels.label(batches, start_step=start_step, rows=rows)

    def eval_batches(self) -> BatchIterator:
        """Host batches of the evaluation split, the rows of this process."""
        rows = sharding.local_rows(self.batch_sharding, self.evaluation.batch_size)
        return self.evaluation.batches(self.data.eval, self.recipe.config.input, rows=rows)


def build(config: ml_collections.ConfigDict) -> Experiment:
    """Opens the data, makes the recipe, and checks everything that can be checked before training.

    Raises:
      ConfigError: all that is wrong, a line or more each.
    """
    problems = Problems(config)
    opened: Any = None
    mesh: Any = None
    parts: dict[str, Any] = {}
    with problems.section("data"):
        opened = data.open_data(**config.data)
    with problems.section("mesh"):
        mesh = sharding.make_mesh(**config.mesh)
    if opened and mesh:
        config, opened = _fitted(config, opened, mesh.size)
    recipe: Any = make_recipe(
        config,
        records=len(opened.train) if opened else _RECORDS,
        num_classes=opened.num_classes if opened else _CLASSES,
        device_count=mesh.size if mesh else jax.device_count(),
        problems=problems,
    )
    parts |= check_sections(config, recipe, problems)
    if mesh:
        _check_divisible(problems, config, mesh)
    if recipe:
        with problems.section("teacher"):
            parts |= teaching.open_teacher(recipe, opened.train)
        with problems.section("init"):
            parts["start"] = _start_weights(recipe)
    problems.raise_any()
    augment_fn = augment.make_augment(recipe.supplied(mesh), **config.augment)
    experiment = Experiment(recipe=recipe, data=opened, mesh=mesh, augment_fn=augment_fn, **parts)
    # They check their options when made, and read nothing before the first batch is taken.
    with problems.section("input"):
        experiment.train_batches().close()
        experiment.eval_batches().close()
    problems.raise_any()
    return experiment


def check_sections(
    config: ml_collections.ConfigDict, recipe: Recipe | None, problems: Problems
) -> dict[str, Any]:
    """Attributes of an `Experiment` that need no data, weights or devices; what is wrong is noted.

    Args:
      recipe: of the config; None where that has mistakes of its own.
    """
    parts: dict[str, Any] = {}
    with problems.section("input"):
        data.check_reading(**config.input)
    with problems.section("eval"):
        side = recipe.image_size if recipe else 1  # larger than no canvas
        parts["evaluation"] = Evaluation(side, **config.eval)
    with problems.section("step"):
        loss_scale.make_rule(recipe.model.dtype if recipe else "float32", config.step)
    with problems.section("nonfinite"):
        parts["max_nonfinite"] = nonfinite.make_limit(**config.nonfinite)
    with problems.section("mesh"):
        sharding.check_sizes(**config.mesh)
    with problems.section("profile"):
        steps = recipe.durations.total_steps if recipe else sys.maxsize
        parts["span"] = profiler.parse_span(config.profile, total_steps=steps)
    if recipe:
        with problems.section("checkpoint"):
            parts["checkpointing"] = _checkpointing(recipe)
    return parts


def _fitted(
    config: ml_collections.ConfigDict, opened: data.Data, device_count: int
) -> tuple[ml_collections.ConfigDict, data.Data]:
    """The config and data of a run that has fewer images than a batch, see `few_photos`."""
    sizes = {"train": len(opened.train), "evaluation": len(opened.eval)}
    fit = few_photos.fit(config, **sizes, device_count=device_count)
    train = data.Repeated(opened.train, fit.times) if fit.times > 1 else opened.train
    notes = (*opened.notes, *fit.notes)
    return fit.config, dataclasses.replace(opened, train=train, notes=notes)


def _start_weights(recipe: Recipe) -> pretrained.Adapted | None:
    config = recipe.config
    if not config.init:
        return None
    loaded = pretrained.load_checkpoint(
        config.init, ema=config.init_ema, which=config.init_which, like=recipe.model
    )
    key = rng.step_key(rng.base_key(config.seed), rng.Purpose.INIT, 0)
    template = models.init_variables(recipe.model, key)
    return pretrained.adapt(
        loaded,
        template,
        model=recipe.model,
        drop_head=config.init_drop_head,
        image={"mean": config.augment.mean, "std": config.augment.std},
    )


def _checkpointing(recipe: Recipe) -> dict[str, Any]:
    """The `checkpoint` section, with a default for the metric that selects the best.

    Raises:
      ConfigError: numbers that would keep nothing, a metric that evaluation does not give,
        or one by which the worst would be kept.
    """
    options = recipe.config.checkpoint.to_dict()
    names = heads.head_names(distilled="dist" in recipe.model.heads)
    if options["best_metric"] is None:
        options["best_metric"] = f"eval/{heads.main_head(names)}/top1"
    metric = options["best_metric"]
    weights = ("eval", "eval_ema") if recipe.config.step.ema_decay else ("eval",)
    values = ("top1", "top5", "loss")
    known = [f"{which}/{head}/{value}" for value in values for which in weights for head in names]
    if metric not in known:
        raise unknown("best_metric", metric, known)
    if metric.endswith("loss") == options["higher_is_better"]:
        raise ConfigError(
            f"higher_is_better must be {not options['higher_is_better']} for best_metric="
            f"{metric!r}, or the worst checkpoint would be kept"
        )
    builders.bind(checkpoint.Retention, options)()
    if options["max_failures"] < 1:
        raise ConfigError(f"max_failures must be at least 1, not {options['max_failures']}")
    return options


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
