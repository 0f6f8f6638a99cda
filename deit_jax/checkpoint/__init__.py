"""Checkpoints that are written in the background and verified when they are read.

Arrays go through orbax (only `io.py` imports it), which commits a step by one rename and
restores onto any mesh. Orbax restores bit-flipped data silently, so this package adds a
digest of every array, a list of all structural differences, falling back to an older step,
and failures of background saves that are reported and counted. NaN is never the best.

`manager.py` is what the training loop uses; `io.py` reads and writes one step; `layout.py`
names the folders and selects one; `retention.py` decides which steps are kept, and a new rule
goes there. A new part of the training state goes into `parts.py`.
"""

from deit_jax.checkpoint.io import read_metadata, read_variables
from deit_jax.checkpoint.layout import (
    CheckpointError,
    DamagedCheckpointError,
    SaveFailedError,
    StructureError,
    select_step,
)
from deit_jax.checkpoint.manager import Checkpointer
from deit_jax.checkpoint.retention import Retention

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "DamagedCheckpointError",
    "Retention",
    "SaveFailedError",
    "StructureError",
    "read_metadata",
    "read_variables",
    "select_step",
]
