"""A dump of the state before a non-finite step, so that the step can be repeated.

    WORKDIR/nonfinite-step-120/119/             an ordinary checkpoint: the state before step 120
    WORKDIR/nonfinite-step-120/nonfinite.json   the step and its metrics

The batch is a function of seed and step, and the config is in the checkpoint's metadata,
so this is all that `deit-jax replay` needs besides the data and the teacher.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from deit_jax import checkpoint, storage
from deit_jax.errors import ConfigError
from deit_jax.train_state import TrainState

_LOG = logging.getLogger(__name__)

FILE_NAME = "nonfinite.json"


def write_dump(
    workdir: storage.Path,
    *,
    step: int,
    state: TrainState,
    metrics: Mapping[str, float],
    metadata: Mapping[str, Any],
) -> storage.Path | None:
    """Writes `<workdir>/nonfinite-step-<step>`; an older one of the same step is replaced.

    `step` is the bad step, counted from 1, and `state` the state after it, in which its update
    was left out. Returns the folder; None if it could not be written, which is logged.
    """
    folder = workdir / f"nonfinite-step-{step}"
    try:
        if jax.process_index() == 0:
            storage.remove_tree(folder)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("nonfinite dump")
        with checkpoint.Checkpointer(folder) as saver:
            saver.save(step - 1, _before(state), metadata=metadata)
        if jax.process_index() == 0:
            texts = {key: repr(value) for key, value in metrics.items()}
            content = json.dumps({"step": step, "metrics": texts}, indent=2)
            storage.write(folder / FILE_NAME, content)
    except (OSError, checkpoint.CheckpointError, checkpoint.SaveFailedError) as error:
        # What the run does next must not depend on whether its disk is full.
        _LOG.error("cannot dump the state before step %d: %s", step, error)
        return None
    return folder


def _before(state: TrainState) -> TrainState:
    """The state before a bad step; it changed these alone."""
    return dataclasses.replace(
        state,
        step=state.step - 1,
        nonfinite_steps=state.nonfinite_steps - 1,
        nonfinite_in_a_row=state.nonfinite_in_a_row - 1,
    )


def read_dump(folder: storage.Path) -> tuple[int, dict[str, float]]:
    """The number of the bad step and its metrics. Raises ConfigError if `folder` is not a dump."""
    file = folder / FILE_NAME
    try:
        content = json.loads(file.read_text())
        return int(content["step"]), {key: float(text) for key, text in content["metrics"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder} is not a dump of a step ({file.name}: {error}); a run that stops at a "
            "non-finite loss or gradient writes one to WORKDIR/nonfinite-step-N"
        ) from error
