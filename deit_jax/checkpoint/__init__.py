"""Checkpoints that are written in the background, verified when read, and never lost silently.

Arrays go through orbax (only `deit_jax.checkpoint.io` imports it), which commits a step by
one rename and restores onto any mesh. What orbax does not do is done here: a digest of
every array (it restores bit-flipped data without a word), a list of all structural
differences, falling back to an older step, NaN never counting as best, and failures of
background saves that are reported and counted.
"""

from deit_jax.checkpoint.io import Restored, read_metadata, read_variables
from deit_jax.checkpoint.layout import (
    CheckpointError,
    DamagedCheckpointError,
    SaveFailedError,
    SelectedStep,
    StructureError,
    select_step,
)
from deit_jax.checkpoint.manager import Checkpointer
from deit_jax.checkpoint.retention import Retention

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "DamagedCheckpointError",
    "Restored",
    "Retention",
    "SaveFailedError",
    "SelectedStep",
    "StructureError",
    "read_metadata",
    "read_variables",
    "select_step",
]
