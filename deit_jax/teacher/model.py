"""Which model the teacher of a recipe is, without its weights where its file tells."""

import dataclasses
from typing import Any

from deit_jax import models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.models import accelerator, registry


@dataclasses.dataclass(frozen=True)
class TeacherModel:
    """The teacher as far as its size and cost go.

    Attributes:
      model: what the run applies; None where it cannot be known yet.
      description: what it is and where it comes from, or why that is unknown.
    """

    model: models.Model | None
    description: str


def find_teacher_model(
    config: Any, student: models.Model, device: Any = None
) -> TeacherModel | None:
    """The teacher of a distilled recipe, None for a recipe without one.

    `config` is a complete config, see `config.load_config`. The checkpoint is described by
    `pretrained.describe`. Where there is none yet, the model is that of `teacher.name`, or
    unknown. `device`, by default jax's first, decides the type of `dtype='auto'`.

    Raises:
      ConfigError: an unknown name, a checkpoint that cannot be read, or one of another number
        of classes.
    """
    if config.loss.distillation == "none":
        return None
    section = config.teacher
    name, missing = section.name, "config.teacher.init is not set"
    info, wanted = None, asked(name, section.num_heads)
    if section.init:
        try:
            info = pretrained.describe(section.init, ema=section.ema, which=section.which, **wanted)
        except FileNotFoundError:
            missing = f"{section.init} does not exist"
    side = section.input_size or student.image_size[0]
    dtype = accelerator.resolve_dtype(section.dtype, device)
    if info is not None:
        model = create_model(info, student.num_classes, side, dtype=dtype)
    elif name:
        sizes = {"num_classes": student.num_classes, "image_size": side}
        model = models.create_model(name, dtype=dtype, **sizes)
    else:
        return TeacherModel(None, f"unknown: {missing}")
    if section.fold_batch_norm:
        model = model.without_batch_norm()
    source = f"{info.model} from {info.label}" if info else f"{name}, {missing}"
    return TeacherModel(model, describe(model, source, info.assumed if info else ""))


def asked(name: str, num_heads: int | None) -> dict[str, Any]:
    """Options of `pretrained.load_checkpoint` from those of the `teacher` section.

    Raises:
      ConfigError: an unknown name, or heads for a model that has none.
    """
    known = registry.options({"name": name}) if name else {"num_heads": None}
    if num_heads is None:
        return {"model": name or None}
    if "num_heads" not in known:
        raise ConfigError(f"num_heads={num_heads}: {name} is not a transformer")
    return {"model": name or None, "model_kwargs": {"num_heads": num_heads}}


def create_model(
    info: pretrained.CheckpointInfo, num_classes: int, side: int, *, dtype: str
) -> models.Model:
    """The model of a teacher's checkpoint as a run applies it.

    Args:
      num_classes: of the student; a teacher with another number is refused.
      side: in pixels, of the teacher's image.
      dtype: compute type, see `accelerator` on 'auto'.

    Raises:
      ConfigError: another number of classes, or a side that the model cannot take.
    """
    if info.num_classes != num_classes:
        raise ConfigError(
            f"teacher {info.source} was trained on {info.num_classes} classes, but the data has "
            f"{num_classes}; both must have the same classes"
        )
    return info.create_model(image_size=side, dtype=dtype)


def describe(model: models.Model, source: str, assumed: str) -> str:
    """One line: `source` says what it is and where it comes from, `assumed` what no file tells."""
    size = f"{model.count().parameters:,} parameters"
    line = f"{source}, {size}, at {model.image_size[0]} px in {model.dtype}"
    return f"{line} ({assumed})" if assumed else line
