"""Which model the teacher of a recipe is, without its weights where its file says."""

import dataclasses
from typing import Any, NamedTuple

from deit_jax import builders, losses, models, pretrained, storage
from deit_jax.errors import ConfigError, check_at_most
from deit_jax.models import accelerator, registry
from deit_jax.models.count import Size
from deit_jax.teacher import kinds, manifest


class Ensemble(NamedTuple):
    """Several models as one teacher, as far as their size and cost go."""

    members: tuple[Any, ...]

    @property
    def dtype(self) -> str:
        """The compute type, which is the same for all."""
        return self.members[0].dtype

    def count(self) -> Size:
        """Parameters and multiply-accumulates of all together."""
        sizes = [model.count() for model in self.members]
        return Size(sum(s.parameters for s in sizes), sum(s.macs for s in sizes))


@dataclasses.dataclass(frozen=True)
class TeacherModel:
    """The teacher as far as its size and cost go.

    Attributes:
      model: what the run applies; None where it cannot be known yet, or for stored labels.
      description: what it is and where it comes from, or why that is unknown.
      stored: the manifest of the labels that stand in its place; None for a live teacher.
    """

    model: models.Model | Ensemble | None
    description: str
    stored: manifest.Manifest | None = None


def find_teacher_model(
    config: Any, student: models.Model, device: Any = None
) -> TeacherModel | None:
    """The teacher of a distilled recipe, None for a recipe without one.

    `config` is a complete config, see `config.load_config`. The checkpoint is described by
    `pretrained.describe`. Where there is none yet, the model is that of `teacher.name`, or
    unknown. `device`, by default jax's first, decides the type of `dtype='auto'`.

    Raises:
      ConfigError: an unknown name, a checkpoint that cannot be read, or one of another number
        of classes; labels that cannot be read or recorded.
    """
    section = config.teacher
    check_numbers(section)
    first = asked(section.get("name", ""), section.get("num_heads"))
    dtype = accelerator.resolve_dtype(section.get("dtype", "auto"), device)
    if config.loss.distillation == "none":
        return None
    check_one(section.labels, section.record)
    if section.record:
        choice_only = config.loss.distillation in losses.CHOICE_ONLY
        builders.bind(kinds.make_kind, section)(student.num_classes, choice_only)
    if section.labels:
        folder = storage.path(section.labels)
        stored = manifest.read(folder)
        return TeacherModel(None, manifest.describe(folder, stored), stored)
    found = [_find_one(section, section.init, student, dtype, section.name, first)]
    found += [_find_one(section, other, student, dtype, "", {}) for other in section.ensemble]
    if len(found) == 1:
        return found[0]
    members = tuple(one.model for one in found)
    model = None if None in members else Ensemble(members)
    return TeacherModel(model, describe_mean([one.description for one in found]))


def check_one(labels: str, record: str) -> None:
    """Raises ConfigError for labels that are both read and recorded."""
    if labels and record:
        raise ConfigError(
            "record needs a live teacher, and labels are stored ones; set only one of them"
        )


def check_numbers(section: Any) -> None:
    """Raises ConfigError for values of a `teacher` section that no teacher could have."""
    for name, most in (("label_epochs", 10**6), ("num_heads", 2**16), ("input_size", 2**16)):
        value = section.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, or None, not {value}")
        check_at_most(most, **{name: value})
    which = section.get("which", "latest")
    if which not in ("latest", "best") and not which.isdecimal():
        raise ConfigError(f"which must be latest, best or a step, not {which!r}")


def _find_one(
    section: Any, init: str, student: models.Model, dtype: str, name: str, wanted: dict[str, Any]
) -> TeacherModel:
    info, missing = None, "config.teacher.init is not set"
    if init:
        try:
            info = pretrained.describe(init, ema=section.ema, which=section.which, **wanted)
        except FileNotFoundError:
            missing = f"{init} does not exist"
    side = section.input_size or student.image_size[0]
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
    """One line: `source` says what it is and where it comes from, `assumed` what no file says."""
    size = f"{model.count().parameters:,} parameters"
    line = f"{source}, {size}, at {model.image_size[0]} px in {model.dtype}"
    return f"{line} ({assumed})" if assumed else line


def describe_mean(descriptions: list[str]) -> str:
    """The same for several teachers."""
    return f"mean of {len(descriptions)}: {'; '.join(descriptions)}"
