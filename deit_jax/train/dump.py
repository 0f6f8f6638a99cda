"""The state before a step that was not finite, written down so that the step can be repeated.

    WORKDIR/nonfinite-step-120/119/             an ordinary checkpoint: the state before step 120
    WORKDIR/nonfinite-step-120/nonfinite.json   the step and what it gave

The batch is a function of seed and step, and the config is in the checkpoint's metadata,
so that this is all that `deit-jax replay` needs beside the data and the teacher.
"""

import dataclasses
import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils

from deit_jax import checkpoint
from deit_jax.errors import ConfigError
from deit_jax.train_state import TrainState

_LOG = logging.getLogger(__name__)

FILE_NAME = "nonfinite.json"


def write_dump(
    workdir: pathlib.Path,
    *,
    step: int,
    state: TrainState,
    scalars: Mapping[str, float],
    metadata: Mapping[str, Any],
) -> pathlib.Path | None:
    """Writes `<workdir>/nonfinite-step-<step>`; an older one of the same step is replaced.

    Args:
      step: the bad step, counted from 1.
      state: the state after it, in which its update was left out; of all processes.
      scalars: the step's metrics.
      metadata: of the run's checkpoints.

    Returns:
      The folder; None if it could not be written, which is on the log.
    """
    folder = workdir / f"nonfinite-step-{step}"
    try:
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("nonfinite dump")
        with checkpoint.Checkpointer(folder) as saver:
            saver.save(step - 1, dataclasses.replace(state, step=state.step - 1), metadata=metadata)
        if jax.process_index() == 0:
            told = {"step": step, "metrics": {key: repr(value) for key, value in scalars.items()}}
            (folder / FILE_NAME).write_text(json.dumps(told, indent=2) + "\n")
    except (OSError, checkpoint.CheckpointError, checkpoint.SaveFailedError) as error:
        # What the run does next must not depend on whether its disk is full.
        _LOG.error("the state before step %d was not written: %s", step, error)
        return None
    return folder


def read_dump(folder: pathlib.Path) -> tuple[int, dict[str, float]]:
    """The bad step and the metrics that it gave.

    Raises:
      ConfigError: the folder is no dump.
    """
    file = folder / FILE_NAME
    try:
        told = json.loads(file.read_text())
        return int(told["step"]), {key: float(text) for key, text in told["metrics"].items()}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{folder} holds no dump of a step ({file.name}: {error}); a run that meets a loss "
            "that is not finite writes one to WORKDIR/nonfinite-step-N"
        ) from error
