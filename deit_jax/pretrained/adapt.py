"""Starting a model from weights of another size, head or kind."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from deit_jax import trees
from deit_jax.errors import ConfigError
from deit_jax.models import Model, VisionTransformer, init_variables
from deit_jax.models.position import resize_position

if TYPE_CHECKING:
    from deit_jax.pretrained.load import Loaded

_HEADS = ("params/head/", "params/head_dist/")
_DISTILLATION = ("params/dist_token", "params/head_dist/")


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of each array, by `/`-joined path; `notes` says why."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    initialised: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} arrays", *self.notes]
        for what in ("resized", "dropped", "initialised"):
            paths = getattr(self, what)
            if paths:
                lines.append(f"{what}: {', '.join(paths)}")
        return "\n".join(lines)


class Initialised(NamedTuple):
    """Variables of the new model, and where they come from."""

    variables: dict[str, Any]
    report: Report


def initialise(
    loaded: "Loaded",
    template: dict[str, Any] | None = None,
    *,
    model: Model,
    drop_head: bool = False,
) -> Initialised:
    """Variables for `model` from a checkpoint.

    The position embedding is resized to the model's grid (class and distillation rows are
    kept). A distilled checkpoint starts a plain model without its distillation token, row and
    head; a plain one starts a distilled model whose token, row and head come from `template`.

    Args:
      loaded: see `pretrained.load_checkpoint`.
      template: freshly initialised `variables` of `model`, where arrays that the checkpoint
        lacks come from; None: there must be none.
      model: the model to start.
      drop_head: start the classification heads afresh; without it a head of another
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
        notes.append("the classification heads start afresh, as asked")
    was, now = (getattr(m, "distilled", False) for m in (old_model, model))
    if was and not now:
        dropped += [path for path in have if path.startswith(_DISTILLATION)]
        notes.append("distilled -> plain: without distillation token, its position and its head")
    dropped = [path for path in dict.fromkeys(dropped)]
    have = {path: value for path, value in have.items() if path not in dropped}
    absent = [path for path in wanted if path not in have]
    expected = _HEADS if drop_head else ()
    if now and not was:
        expected += _DISTILLATION
        notes.append(
            "plain -> distilled: distillation token, its position and its head start afresh"
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
        raise ConfigError(f"{loaded.source} lacks {', '.join(absent)}, and no template was given")
    values = {path: have.get(path, fresh.get(path)) for path in wanted}
    kept = tuple(path for path in wanted if path in have and path not in resized)
    report = Report(kept, tuple(resized), tuple(dropped), tuple(absent), tuple(notes))
    return Initialised(trees.nested(values), report)


def _check(loaded: "Loaded", wanted: dict, have: dict, missing: list[str]) -> None:
    """Refuses what does not fit, everything at once."""
    problems = [f"missing {path}" for path in missing]
    problems += [f"unexpected {path}" for path in have if path not in wanted]
    for path, value in have.items():
        if path in wanted and value.shape != wanted[path].shape:
            shapes = f"{path} is {value.shape}, the model has {wanted[path].shape}"
            head = path.startswith(_HEADS)
            problems.append(shapes + (" (drop_head starts it afresh)" if head else ""))
    if problems:
        raise ConfigError(f"{loaded.source} does not fit: {'; '.join(problems)}")


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
            raise ConfigError("a distilled model starts from a plain one only with a template")
    moved = old.grid != new.grid
    patches = resize_position(patches, old.grid, new.grid)
    return np.concatenate([rows, patches], axis=1), moved
