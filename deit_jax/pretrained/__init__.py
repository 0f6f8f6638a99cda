"""Weights from anywhere, as variables of our models: published files, other libraries, our runs.

`load.py` reads, `adapt.py` fits a checkpoint to another head, size or kind of model, `hub.py`
lists the published files, `hf_hub.py` fetches from the Hugging Face hub, `convert.py` writes.
`checkpoint.py` is what passes between them.

A new file format or naming: see `formats/`. A new target of `deit-jax convert`: a function and
a line in `convert.WRITERS`. A newly published checkpoint: a line in `hub.PUBLISHED`.
"""

from deit_jax.pretrained.adapt import Adapted, adapt
from deit_jax.pretrained.checkpoint import CheckpointInfo, LoadedCheckpoint
from deit_jax.pretrained.load import describe, load_checkpoint

__all__ = ["Adapted", "CheckpointInfo", "LoadedCheckpoint", "adapt", "describe", "load_checkpoint"]
