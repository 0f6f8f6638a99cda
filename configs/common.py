"""What every config file uses: laying one recipe over another, and the tiny mode."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def merged(*parts: Mapping[str, Any] | ConfigDict) -> ConfigDict:
    """The sections of all parts in one config; where two parts set a key, the later one wins."""
    sections: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Mapping | ConfigDict):
                value = dict(sections.get(name, {})) | dict(value)
            sections[name] = value
    return ConfigDict(sections)


# The tiny mode, `FILE:VARIANT,tiny`: three steps of a very small model on small images. Data,
# teacher, augmentation, loss and optimizer stay those of the recipe.
TINY = {
    "model": {"image_size": 32, "dtype": "float32"},
    "input": {"canvas": 64, "threads": 1},
    "schedule": {"warmup_epochs": 0.0},
    "train": {
        "batch_size": 16,
        "total_steps": 3,
        "log_every_steps": 1,
        "eval_every_steps": 3,
        "checkpoint_every_steps": 1,
    },
    "eval": {"batch_size": 16, "canvas": 64},
}
# By how the model's name begins.
TINY_MODELS = {
    "deit": {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "regnet": {"widths": (8, 16), "depths": (1, 1), "group_sizes": (4, 4), "strides": (2, 2)},
}


def tiny(config: ConfigDict) -> ConfigDict:
    """`config` in the tiny mode: any recipe in seconds on a CPU."""
    name = config.model.name
    shapes = [shape for start, shape in TINY_MODELS.items() if name.startswith(start)]
    return merged(config, TINY, *({"model": shape} for shape in shapes))


# What may follow a variant after a comma.
MODES = {"tiny": tiny}
