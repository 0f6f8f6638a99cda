"""Weights from anywhere, as variables of our models: published files, timm, Hugging Face, our runs.

`load.py` reads, `adapt.py` fits what was read to another head, size or kind of model, `hub.py`
lists the published files, `convert.py` writes. A new file format is a module in `formats/`.
"""

from deit_jax.pretrained.adapt import Initialised, Report, initialise
from deit_jax.pretrained.load import Loaded, load_checkpoint

__all__ = ["Initialised", "Loaded", "Report", "initialise", "load_checkpoint"]
