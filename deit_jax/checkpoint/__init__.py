"""Checkpoints that are written in the background, verified when read, and never lost silently.

Arrays go through orbax (only `deit_jax.checkpoint.io` imports it), which commits a step by
one rename and restores onto any mesh. What orbax does not do is done here: a digest of
every array (it restores bit-flipped data without a word), a list of all structural
differences, falling back to an older step, NaN never counting as best, and failures of
background saves that are reported and counted.
"""

from deit_jax.checkpoint.io import Restored, read_variables
from deit_jax.checkpoint.layout import (
    CheckpointError,
    DamagedCheckpointError,
    SaveFailedError,
    StructureError,
)
from deit_jax.checkpoint.manager import Best, Checkpointer
from deit_jax.checkpoint.retention import Retention

__all__ = [
    "Best",
    "CheckpointError",
    "Checkpointer",
    "DamagedCheckpointError",
    "Restored",
    "Retention",
    "SaveFailedError",
    "StructureError",
    "read_variables",
]
