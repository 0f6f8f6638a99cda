"""What the `teacher` section gives a run: a live teacher, stored labels, labels to record."""

from collections.abc import Callable
from typing import Any

import jax

from deit_jax import builders, data, storage
from deit_jax import teacher as teacher_lib
from deit_jax.distributed import sharding
from deit_jax.recipe.recipe import Recipe
from deit_jax.teacher import kinds, manifest
from deit_jax.tracking import provenance
from deit_jax.train import answers


def open_teacher(recipe: Recipe, source: data.Source) -> dict[str, Any]:
    """The attributes of an `Experiment` that come from the section.

    Raises:
      ConfigError: no teacher or labels, or such that do not fit.
    """
    config, section = recipe.config, recipe.config.teacher
    parts: dict[str, Any] = {"teacher": None, "labels": None, "record": None}
    if config.loss.distillation == "none":
        return parts
    statistics = config.augment.mean, config.augment.std
    parts["teacher"] = teacher_lib.make_teacher(
        recipe.num_classes, recipe.image_size, *statistics, **section
    )
    if section.record:
        make = builders.bind(teacher_lib.make_kind, section)
        parts["record"] = make(recipe.num_classes, recipe.choice_only)
    if section.labels:
        repeat = recipe.label_period or recipe.durations.total_steps
        parts["labels"] = teacher_lib.open_labels(
            section.labels,
            inputs=_inputs(recipe, source),
            num_classes=recipe.num_classes,
            distillation=config.loss.distillation,
            needed=min(recipe.durations.stop_at, repeat),
            steps=repeat,
        )
    return parts


def step_labels(
    recipe: Recipe, mesh: jax.sharding.Mesh, stored: kinds.Kind | None, record: kinds.Kind | None
) -> answers.Labels:
    """What the step does with the teacher's logits, see `answers.Labels`."""
    # All processes get all rows: one writes them.
    everywhere = sharding.replicated(mesh)

    def encode(logits: jax.Array) -> kinds.Rows:
        assert record is not None
        return jax.lax.with_sharding_constraint(record.encode(logits), everywhere)

    return answers.Labels(
        used=kinds.Hard(recipe.num_classes) if recipe.choice_only else None,
        stored=stored,
        record=encode if record else None,
        period=recipe.label_period,
    )


def start_recorder(
    recipe: Recipe,
    source: data.Source,
    teacher: teacher_lib.Teacher | None,
    kind: kinds.Kind | None,
    print_line: Callable[[str], None],
) -> teacher_lib.Recorder | None:
    """What writes the labels that the run records; None without, and on all processes but one.

    Raises:
      ConfigError: the folder has labels of something else, or cannot be written.
    """
    if kind is None or teacher is None or jax.process_index() != 0:
        return None
    folder = storage.path(recipe.config.teacher.record)
    about = {
        "digest": teacher.digest,
        "description": teacher.description,
        "macs_per_image": teacher.model.count().macs,
    }
    inputs = _inputs(recipe, source)
    made = {"devices": f"{jax.device_count()} {jax.devices()[0].device_kind}"}
    return teacher_lib.Recorder(
        folder,
        manifest.Manifest(kind, inputs, about),
        made=made | provenance.collect(),
        print_line=print_line,
    )


def _inputs(recipe: Recipe, source: data.Source) -> dict[str, Any]:
    sizes = {"mix_group": recipe.mix_group, "image_size": recipe.image_size}
    return manifest.inputs(recipe.config, source=source, **sizes)
