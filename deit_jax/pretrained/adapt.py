"""Initializing a model from weights of another size, head or kind."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deit_jax import builders, trees
from deit_jax.errors import ConfigError
from deit_jax.models import Model, abstract_variables
from deit_jax.pretrained.checkpoint import LoadedCheckpoint


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
            if paths := getattr(self, what):
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
    image: Mapping[str, Sequence[float]] | None = None,
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
      image: `mean` and `std` of what the model will see; the report notes where the
        checkpoint has others.

    Raises:
      ConfigError: lists every missing, unexpected and misshapen array, and what differs though
        the shapes agree (the number of heads).
    """
    wanted = trees.named_leaves(abstract_variables(model))
    fresh = trees.named_leaves(template) if template is not None else {}
    have = trees.named_leaves(loaded.variables)
    old_model = loaded.create_model()
    before, after = set(old_model.optional_params), set(model.optional_params)
    lost, gained = before - after, after - before
    heads = set(model.head_params) if drop_head else set()
    dropped = [path for path in have if _first(path) in lost | heads]
    notes = ["drop_head: the classification heads are initialized"] if drop_head else []
    notes += _differences(loaded, lost, gained, image or {})
    have = {path: value for path, value in have.items() if path not in dropped}
    absent = [path for path in wanted if path not in have]
    resized = []
    for path in [path for path in have if path in wanted and path.startswith("params/")]:
        name = path.removeprefix("params/")
        have[path], note = model.fit_param(name, have[path], old_model, fresh.get(path))
        if note:
            resized.append(path)
            notes.append(note)
    problems = [f"missing {path}" for path in absent if _first(path) not in gained | heads]
    problems += _misfits(have, wanted, model.head_params)
    if problems := problems or _contradictions(old_model, model):
        raise ConfigError(f"{loaded.label} does not fit: {'; '.join(problems)}")
    if absent and template is None:
        raise ConfigError(f"{loaded.label} lacks {', '.join(absent)}, and no template was given")
    whole = tuple(path for path in wanted if path in have and path not in resized)
    report = Report(
        whole, tuple(resized), tuple(dropped), tuple(absent), tuple(notes), loaded.label
    )
    return Adapted(trees.nested(fresh | have), report)


def _differences(
    loaded: LoadedCheckpoint, lost: set[str], gained: set[str], image: Mapping[str, Sequence[float]]
) -> Iterator[str]:
    """Notes on what was assumed of the checkpoint, and on what it and the model do not share."""
    if loaded.assumed:
        yield loaded.assumed
    for key, value in image.items():
        if not np.allclose(loaded.image[key], value, atol=1e-3):
            there, here = builders.plain(loaded.image[key]), builders.plain(value)
            yield f"trained on images with {key} {there}; here it is {here}"
    if lost:
        yield f"{', '.join(sorted(lost))}: not in this model, dropped"
    if gained:
        yield f"{', '.join(sorted(gained))}: missing in the checkpoint, initialized"


def _first(path: str) -> str:
    """`head` of 'params/head/kernel'; '' for what is not a parameter."""
    collection, name, *_ = path.split("/")
    return name if collection == "params" else ""


def _contradictions(old: Model, model: Model) -> list[str]:
    return [
        f"{key} is {there}, the model has {here}"
        for key in model.undetermined
        if (there := getattr(old, key, None)) != (here := getattr(model, key))
    ]


def _misfits(have: dict, wanted: dict, heads: tuple[str, ...]) -> list[str]:
    problems = [f"unexpected {path}" for path in have if path not in wanted]
    for path in [path for path in have if path in wanted]:
        there, here = have[path].shape, wanted[path].shape
        if there != here:
            remedy = " (drop_head initializes it)" if _first(path) in heads else ""
            problems.append(f"{path} is {there}, the model has {here}{remedy}")
    return problems
