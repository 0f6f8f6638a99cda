"""The `teacher` section: a live teacher, whose labels may be recorded, or stored labels."""

from collections.abc import Callable
from typing import Any

from deit_jax import builders
from deit_jax.errors import ConfigError
from deit_jax.teacher.kinds import make_kind
from deit_jax.teacher.live import Teacher, load_teacher
from deit_jax.teacher.model import check_one


def _live(labels: str) -> list[Callable]:
    return [] if labels else [load_teacher]


def _recorded(record: str) -> list[Callable]:
    return [make_kind] if record else []


@builders.chooses(labels=_live, record=_recorded)
def make_teacher(
    num_classes: int,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    labels: str = "",
    record: str = "",
    label_epochs: int | None = None,
    **options: Any,
) -> Teacher | None:
    """The live teacher; None where stored labels stand in its place.

    Args:
      num_classes, image_size, mean, std: see `load_teacher`.
      labels: folder of stored labels; no teacher is loaded. See `stored.open_labels`.
      record: folder for the labels that the live teacher gives; see `recorder.Recorder`.
      label_epochs: epoch e has the images and labels of epoch e modulo this number, live or
        stored (dataset reinforcement, arXiv 2303.08983); None: every epoch has its own.
      options: of `load_teacher`, and of `make_kind` when recording.

    Raises:
      ConfigError: as `load_teacher`; options that exclude each other, or out of range.
    """
    if label_epochs is not None and label_epochs < 1:
        raise ConfigError(f"label_epochs must be at least 1, or None, not {label_epochs}")
    check_one(labels, record)
    if labels:
        return None
    load = builders.bind(load_teacher, options)
    return load(num_classes, image_size, mean, std)
