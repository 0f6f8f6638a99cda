"""Which parameters are decayed, at which share of the learning rate, and which are frozen."""

import math
import re
from typing import Any, NamedTuple

from deit_jax import trees
from deit_jax.errors import ConfigError, check_at_most
from deit_jax.models import Model
from deit_jax.tracking import text

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


class Rule(NamedTuple):
    """How a parameter is trained.

    Attributes:
      frozen: True if it is not trained at all.
      lr_scale: share of the learning rate; 0.0 if frozen.
      decay: weight decay coefficient; 0.0 where none applies.
    """

    frozen: bool
    lr_scale: float
    decay: float


# By path, as 'blocks_0/attn/qkv/kernel'.
Rules = dict[str, Rule]


class Group(NamedTuple):
    """Parameters that are treated alike: their `Rule`, paths, and scalars in all."""

    frozen: bool
    lr_scale: float
    decay: float
    paths: tuple[str, ...]
    num_params: int


def make_rules(
    params: PyTree,
    model: Model | None = None,
    *,
    weight_decay: float = 0.05,
    decay_dist_token: bool = True,
    decay_all: bool = False,
    layer_decay: float | None = None,
    trainable: str = "all",
) -> Rules:
    """The rule of each of `params`; arguments and errors as `make_optimizer`."""
    if not weight_decay >= 0:
        raise ConfigError(f"weight_decay must be at least 0, not {weight_decay}")
    check_at_most(1000, weight_decay=weight_decay)
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay must be above 0 and at most 1, or None, not {layer_decay}")
    paths = list(trees.named_leaves(params))
    undecayed = UNDECAYED + (model.no_weight_decay if model else ())
    trained = _trainable(paths, trainable)
    rules = {}
    for path in paths:
        decayed = decay_all or _decayed(path, undecayed, decay_dist_token)
        decay = float(weight_decay) * decayed
        scale = _lr_scale(path, model, layer_decay)
        rules[path] = Rule(False, scale, decay) if path in trained else Rule(True, 0.0, 0.0)
    return rules


def decay_groups(params: PyTree, model: Model | None = None, **options: Any) -> list[Group]:
    """The groups of `params`, each parameter in exactly one; arguments as `make_rules`."""
    sizes = {path: math.prod(leaf.shape) for path, leaf in trees.named_leaves(params).items()}
    members: dict[Rule, list[str]] = {}
    for path, rule in make_rules(params, model, **options).items():
        members.setdefault(rule, []).append(path)
    groups = [
        Group(*rule, tuple(paths), sum(map(sizes.__getitem__, paths)))
        for rule, paths in members.items()
    ]
    return sorted(groups, key=lambda g: (g.frozen, -g.lr_scale, -g.decay))


def format_groups(groups: list[Group]) -> str:
    """The groups as a text table, one line per group and a line for the sum."""
    rows: list[tuple[str, ...]] = [("names", "tensors", "params", "decay", "lr scale")]
    for group in groups:
        rates = ("frozen", "-") if group.frozen else (f"{group.decay:g}", f"{group.lr_scale:.4g}")
        names = _short_names(group.paths)
        rows.append((names, f"{len(group.paths):,}", f"{group.num_params:,}", *rates))
    tensors, params = sum(len(g.paths) for g in groups), sum(g.num_params for g in groups)
    return text.table([*rows, ("all", f"{tensors:,}", f"{params:,}", "", "")])


def _short_names(paths: tuple[str, ...]) -> str:
    """Names of a group's parameters in short: `*/kernel, dist_token`."""
    by_leaf: dict[str, list[str]] = {}
    for path in paths:
        by_leaf.setdefault(path.split("/")[-1], []).append(path)
    return ", ".join(
        f"*/{leaf}" if len(members) > 1 else members[0] for leaf, members in sorted(by_leaf.items())
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


def _trainable(paths: list[str], trainable: str) -> set[str]:
    pattern = TRAINABLE.get(trainable, trainable)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"trainable={trainable!r} is not a regular expression ({error}); use one that is "
            f"searched in names such as {paths[0]!r}, or one of: {', '.join(TRAINABLE)}"
        ) from None
    chosen = {path for path in paths if compiled.search(path)}
    if not chosen:
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
