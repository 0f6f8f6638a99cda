"""Initializing a model from weights of another size, head or kind."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from deit_jax import trees
from deit_jax.errors import ConfigError
from deit_jax.models import Model, VisionTransformer, init_variables
from deit_jax.models.position import resize_position
from deit_jax.pretrained.checkpoint import LoadedCheckpoint

_HEADS = ("params/head/", "params/head_dist/")
_DISTILLATION = ("params/dist_token", "params/head_dist/")


@dataclasses.dataclass(frozen=True)
class Report:
    """Which arrays were loaded, resized, dropped or initialized, by path; `notes` say why."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    initialized: tuple[str, ...]
    notes: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} arrays from {self.source}", *self.notes]
        for what in ("resized", "dropped", "initialized"):
            paths = getattr(self, what)
            if paths:
                lines.append(f"{what}: {', '.join(paths)}")
        return "\n".join(lines)


class Adapted(NamedTuple):
    """Variables of the new model, and where each of them is from."""

    variables: dict[str, Any]
    report: Report


def adapt(
    loaded: LoadedCheckpoint,
    template: dict[str, Any] | None = None,
    *,
    model: Model,
    drop_head: bool = False,
) -> Adapted:
    """Variables for `model` from a checkpoint.

    The position embedding is resized to the model's grid, all but the rows of the class and
    distillation tokens. From a distilled checkpoint a plain model takes all but the
    distillation token, its row and its head; a distilled model takes these three from
    `template` where the checkpoint is a plain one.

    Args:
      loaded: see `pretrained.load_checkpoint`.
      template: freshly initialized `variables` of `model`, for arrays that the checkpoint
        lacks; None where it must have all.
      model: the model to initialize.
      drop_head: initialize the classification heads; without it a head of another
        number of classes is refused.

    Raises:
      ConfigError: lists every missing, unexpected and misshapen array.
    """
    abstract = jax.eval_shape(lambda: init_variables(model, jax.random.key(0)))
    wanted = trees.named_leaves(abstract)
    fresh = trees.named_leaves(template) if template is not None else {}
    have = trees.named_leaves(loaded.variables)
    old_model = loaded.create_model()
    dropped, notes = [], []
    if drop_head:
        dropped += [path for path in have if path.startswith(_HEADS)]
        notes.append("drop_head: the classification heads are initialized")
    old_distilled, distilled = (getattr(m, "distilled", False) for m in (old_model, model))
    if old_distilled and not distilled:
        dropped += [path for path in have if path.startswith(_DISTILLATION)]
        notes.append("distilled -> plain: without distillation token, its position and its head")
    dropped = list(dict.fromkeys(dropped))
    have = {path: value for path, value in have.items() if path not in dropped}
    absent = [path for path in wanted if path not in have]
    expected = _HEADS if drop_head else ()
    if distilled and not old_distilled:
        expected += _DISTILLATION
        notes.append(
            "plain -> distilled: distillation token, its position and its head are initialized"
        )
    resized = []
    pos = "params/pos_embed"
    if pos in have and pos in wanted and isinstance(old_model, VisionTransformer):
        row = fresh.get(pos)
        have[pos], moved = _position(have[pos], old_model, model, row)
        if moved:
            resized.append(pos)
            notes.append(f"position embedding {old_model.grid} -> {model.grid}")
    _check(loaded, wanted, have, [path for path in absent if not path.startswith(expected)])
    if absent and template is None:
        raise ConfigError(f"{loaded.label} lacks {', '.join(absent)}, and no template was given")
    values = {path: have.get(path, fresh.get(path)) for path in wanted}
    whole = tuple(path for path in wanted if path in have and path not in resized)
    report = Report(
        whole, tuple(resized), tuple(dropped), tuple(absent), tuple(notes), loaded.label
    )
    return Adapted(trees.nested(values), report)


def _check(loaded: LoadedCheckpoint, wanted: dict, have: dict, missing: list[str]) -> None:
    """Raises ConfigError with all that does not fit."""
    problems = [f"missing {path}" for path in missing]
    problems += [f"unexpected {path}" for path in have if path not in wanted]
    for path, value in have.items():
        if path in wanted and value.shape != wanted[path].shape:
            shapes = f"{path} is {value.shape}, the model has {wanted[path].shape}"
            head = path.startswith(_HEADS)
            problems.append(shapes + (" (drop_head initializes it)" if head else ""))
    if problems:
        raise ConfigError(f"{loaded.label} does not fit: {'; '.join(problems)}")


def _position(
    position: np.ndarray,
    old: VisionTransformer,
    new: Any,
    fresh: np.ndarray | None,
) -> tuple[np.ndarray, bool]:
    """(position embedding of `new`, whether its grid was resized)."""
    if not isinstance(new, VisionTransformer) or old.class_position != new.class_position:
        return position, False
    position = np.asarray(position)
    prefix = (1 + old.distilled) if old.class_position else 0
    rows, patches = position[:, :prefix], position[:, prefix:]
    if old.class_position and old.distilled != new.distilled:
        if old.distilled:
            rows = rows[:, :1]
        elif fresh is not None:
            rows = np.concatenate([rows, np.asarray(fresh)[:, 1:2]], axis=1)
        else:
            raise ConfigError("a distilled model needs a template to start from a plain one")
    moved = old.grid != new.grid
    patches = resize_position(patches, old.grid, new.grid)
    return np.concatenate([rows, patches], axis=1), moved
