"""The training state: arrays only, no functions and no random keys."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any

_zero = lambda: jnp.zeros((), jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step changes.

    Attributes:
      step: int32 scalar, the number of training steps done, including those whose update was
        skipped because it was not finite.
      params: nested dict of f32 arrays.
      batch_stats: running BatchNorm statistics, `{}` for models without BatchNorm.
      ema_params: exponential moving average of `params`, None when EMA is off.
      ema_batch_stats: the same of `batch_stats`, None when EMA is off.
      opt_state: the optax state.
      nonfinite_steps: int32 scalar, steps so far with a non-finite loss or gradient.
      nonfinite_in_a_row: int32 scalar, how many of them the newest steps are.
      loss_scale: state of the scaled loss, see `train.loss_scale`; None without one.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    ema_params: PyTree
    ema_batch_stats: PyTree
    opt_state: PyTree
    nonfinite_steps: jax.Array = dataclasses.field(default_factory=_zero)
    nonfinite_in_a_row: jax.Array = dataclasses.field(default_factory=_zero)
    loss_scale: PyTree = None

    def variables(self, *, ema: bool = False) -> dict[str, PyTree]:
        """The collections that `models.apply` takes, of the raw weights or the EMA."""
        params = self.ema_params if ema else self.params
        stats = self.ema_batch_stats if ema else self.batch_stats
        return {"params": params, "batch_stats": stats} if stats else {"params": params}
