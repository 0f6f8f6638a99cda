"""Steps on their way: dispatched ahead of the host, read in order, done again after a bad one."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from deit_jax.train import nonfinite
from deit_jax.train_state import TrainState

PyTree = Any

# Steps dispatched and not yet waited for. More would hide nothing further, and an
# unbounded queue of collectives can deadlock.
IN_FLIGHT = 2


class Steps:
    """The training state on the devices, and the steps that are changing it.

    Args:
      step: `(state, teacher_variables, batch) -> (state, metrics)`, not yet jitted.
      state: donated; `self.state` is the one to use from then on.
      teacher: its variables on the mesh, or None.
      copies: the sharding of a scalar that every device holds.
    """

    def __init__(
        self,
        step: Callable,
        *,
        state: TrainState,
        teacher: PyTree,
        copies: jax.sharding.NamedSharding,
    ) -> None:
        self._step = jax.jit(nonfinite.halting(step), donate_argnums=0)
        self._teacher = teacher
        self._running = jax.device_put(np.bool_(False), copies)
        self._halted = self._running
        # (step, its batch, its metrics): the batch is kept for `again`.
        self._pending: collections.deque = collections.deque()
        self.state = state

    def dispatch(self, step: int, batch: PyTree) -> PyTree:
        """Sends `step` (counted from 1) on its way; its metrics, not waited for."""
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            self.state, metrics, self._halted = self._step(
                self.state, self._teacher, batch, self._halted
            )
        self._pending.append((step, batch, metrics))
        return metrics

    def take(self, *, keep: int = 0) -> Iterator[tuple[int, bool, dict[str, float]]]:
        """(step, whether it was finite, its metrics) of all but the newest `keep`, in order.

        After a step that was not finite, `self.state` is the state after that step until
        `again` is called; the steps after it have changed nothing yet.
        """
        while len(self._pending) > keep:
            step, _, metrics = self._pending.popleft()
            read = {key: float(value) for key, value in jax.device_get(metrics).items()}
            yield step, bool(read.pop("finite")), read

    def again(self) -> None:
        """Lets the devices go on after a step that was not finite."""
        waiting = list(self._pending)
        self._pending.clear()
        self._halted = self._running
        for step, batch, _ in waiting:
            self.dispatch(step, batch)
