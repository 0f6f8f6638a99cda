"""Which model the teacher of a recipe is, without its weights where its file tells."""

import dataclasses

import ml_collections

from deit_jax import models, pretrained


@dataclasses.dataclass(frozen=True)
class TeacherModel:
    """The teacher as far as its size and cost go.

    Attributes:
      model: None where it cannot be known yet.
      description: what it is and where it comes from, or why that is unknown.
    """

    model: models.Model | None
    description: str


def find_teacher_model(
    config: ml_collections.ConfigDict, student: models.Model
) -> TeacherModel | None:
    """The teacher of a distilled recipe, None for a recipe without one.

    Its checkpoint is described by `pretrained.describe`. Where there is none yet, the model is
    the one that `teacher.name` names, or unknown.

    Raises:
      ConfigError: an unknown name, or a checkpoint that cannot be read.
    """
    if config.loss.distillation == "none":
        return None
    section = config.teacher
    sizes = {
        "num_classes": student.num_classes,
        "image_size": section.input_size or student.image_size[0],
    }
    name, missing = section.name, "config.teacher.init is not set"
    if section.init:
        try:
            info = pretrained.describe(
                section.init, ema=section.ema, which=section.which, model=name or None
            )
            return TeacherModel(info.create_model(**sizes), f"{info.model}, {info.label}")
        except FileNotFoundError:
            missing = f"{section.init} does not exist"
    if not name:
        return TeacherModel(None, f"unknown: {missing}")
    return TeacherModel(models.create_model(name, **sizes), f"{name}, {missing}")
