"""Which parameters are decayed, at which share of the learning rate, and which are frozen."""

import dataclasses
import math
import re
from typing import Any

from deit_jax import trees
from deit_jax.errors import ConfigError
from deit_jax.models import Model

PyTree = Any

# The official code decays no 1-D tensor, no bias, no position embedding and no class token.
DECAYED = ("kernel",)
UNDECAYED = ("bias", "scale", "gamma_1", "gamma_2", "cls_token", "pos_embed")
BY_SWITCH = ("dist_token",)

# `attn_only` is the fine-tuning of "Three things everyone should know about ViTs" as the
# official code does it: attention layers, heads and the position embedding.
TRAINABLE = {
    "all": "",
    "attn_only": r"(^|/)attn/|^head(_dist)?/|^pos_embed$",
    "heads": r"^head(_dist)?/",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that are treated alike.

    Attributes:
      decay: weight decay coefficient, 0.0 for none.
      lr_scale: share of the learning rate.
      frozen: True if the parameters are not trained at all.
      paths: the parameters, as 'blocks_0/attn/qkv/kernel'.
      num_params: scalar parameters in all.
    """

    decay: float
    lr_scale: float
    frozen: bool
    paths: tuple[str, ...]
    num_params: int

    @property
    def tensors(self) -> int:
        """Count of parameter arrays."""
        return len(self.paths)


def decay_groups(params: PyTree, model: Model | None = None, **options: Any) -> list[Group]:
    """The groups of `params`, each parameter in exactly one; arguments as in `Masks.make`."""
    masks = Masks.make(params, model, **options)
    leaves = trees.named_leaves(params)
    by_kind: dict[tuple, list[str]] = {}
    for path in leaves:
        frozen = not masks.trainable[path]
        rates = (0.0, 0.0) if frozen else (masks.lr_scale[path], masks.decay[path])
        by_kind.setdefault((frozen, *rates), []).append(path)
    groups = [
        Group(
            decay=decay,
            lr_scale=lr_scale,
            frozen=frozen,
            paths=tuple(paths),
            num_params=sum(math.prod(leaves[path].shape) for path in paths),
        )
        for (frozen, lr_scale, decay), paths in by_kind.items()
    ]
    return sorted(groups, key=lambda g: (g.frozen, -g.lr_scale, -g.decay))


def format_groups(groups: list[Group]) -> str:
    """The groups as a text table, one line per group and a line for the sum."""
    rows = [("names", "tensors", "params", "decay", "lr scale")]
    for group in groups:
        rows.append(
            (
                _short_names(group.paths),
                f"{group.tensors:,}",
                f"{group.num_params:,}",
                "frozen" if group.frozen else f"{group.decay:g}",
                "-" if group.frozen else f"{group.lr_scale:.4g}",
            )
        )
    tensors, params = sum(g.tensors for g in groups), sum(g.num_params for g in groups)
    rows.append(("all", f"{tensors:,}", f"{params:,}", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _short_names(paths: tuple[str, ...]) -> str:
    """Names of a group's parameters in short: `*/kernel, dist_token`."""
    leaves: dict[str, set[str]] = {}
    for path in paths:
        leaves.setdefault(path.split("/")[-1], set()).add(path)
    return ", ".join(
        f"*/{leaf}" if len(members) > 1 else next(iter(members))
        for leaf, members in sorted(leaves.items())
    )


@dataclasses.dataclass(frozen=True)
class Masks:
    """Per-parameter decisions, by path.

    Attributes:
      decay: weight decay coefficient, 0.0 where none applies.
      trainable: whether the parameter is trained.
      lr_scale: share of the learning rate.
    """

    decay: dict[str, float]
    trainable: dict[str, bool]
    lr_scale: dict[str, float]

    @classmethod
    def make(
        cls,
        params: PyTree,
        model: Model | None = None,
        *,
        weight_decay: float = 0.05,
        decay_dist_token: bool = True,
        layer_decay: float | None = None,
        trainable: str = "all",
    ) -> "Masks":
        """The decisions for `params`; arguments and errors as `make_optimizer`."""
        if not weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0, not {weight_decay}")
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ConfigError(
                f"layer_decay must be above 0 and at most 1, or None, not {layer_decay}"
            )
        paths = list(trees.named_leaves(params))
        undecayed = UNDECAYED + (model.no_weight_decay if model else ())
        return cls(
            decay={
                path: float(weight_decay) if _decayed(path, undecayed, decay_dist_token) else 0.0
                for path in paths
            },
            trainable=_trainable(paths, trainable),
            lr_scale={path: _lr_scale(path, model, layer_decay) for path in paths},
        )


def _decayed(path: str, undecayed: tuple[str, ...], decay_dist_token: bool) -> bool:
    leaf = path.split("/")[-1]
    if leaf in BY_SWITCH:
        return decay_dist_token
    if leaf in DECAYED:
        return True
    if leaf in undecayed:
        return False
    known = ", ".join(DECAYED + undecayed + BY_SWITCH)
    raise ConfigError(
        f"no weight-decay rule for parameter {path!r}; rules are by last name: {known}"
    )


def _trainable(paths: list[str], trainable: str) -> dict[str, bool]:
    pattern = TRAINABLE.get(trainable, trainable)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"trainable={trainable!r} is not a regular expression ({error}); use one that is "
            f"searched in names such as {paths[0]!r}, or one of: {', '.join(TRAINABLE)}"
        ) from None
    chosen = {path: compiled.search(path) is not None for path in paths}
    if not any(chosen.values()):
        raise ConfigError(
            f"trainable={trainable!r} matches no parameter; use {', '.join(TRAINABLE)}, or a "
            f"regular expression that is searched in names such as {paths[0]!r}"
        )
    return chosen


def _lr_scale(path: str, model: Model | None, layer_decay: float | None) -> float:
    if layer_decay is None or layer_decay == 1.0:
        return 1.0
    layer = model.layer_of(path) if model else None
    if model is None or layer is None:
        raise ConfigError(
            f"layer_decay needs a model with numbered layers, and {path!r} has no number; set "
            "layer_decay=None for this model"
        )
    return float(layer_decay) ** (model.num_layers - layer)
