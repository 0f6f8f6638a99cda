"""The training state as plain nested dicts of arrays, and back."""

from collections.abc import Mapping
from typing import Any

from deit_jax.train_state import TrainState
from deit_jax.trees import PyTree, map_with_name, named_leaves, nested


def state_parts(state: TrainState) -> dict[str, PyTree]:
    """The state as plain nested dicts, so that no optax class is part of the format.

    `params`, `batch_stats`, `ema/{params,batch_stats}`, `train/...`; what has
    no arrays is left out.
    """
    return nested(named_leaves(_named(state)))


_TRAIN = ("step", "opt_state", "nonfinite_steps", "nonfinite_in_a_row", "loss_scale")


def _named(state: TrainState) -> dict[str, PyTree]:
    return {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "ema": {"params": state.ema_params, "batch_stats": state.ema_batch_stats},
        "train": {name: getattr(state, name) for name in _TRAIN},
    }


def filled(abstract: TrainState, leaves: Mapping[str, Any]) -> TrainState:
    """`abstract` with its leaves replaced by name."""
    parts = map_with_name(lambda name, _: leaves[name], _named(abstract))
    own = {key: parts[key] for key in ("params", "batch_stats")}
    ema = {f"ema_{key}": value for key, value in parts["ema"].items()}
    return TrainState(**own, **ema, **parts["train"])
