"""Running shipped recipes in a form small enough for tests."""

import pathlib

import jax
from configs import common
from deit_jax import config as config_lib
from deit_jax import loop, sections

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = ("data.source=digits",)
# What costs most to compile, off.
NO_AUGMENTATION = (
    "augment.randaugment=", "augment.three_augment=false", "augment.color_jitter=0",
    "augment.erasing_prob=0", "augment.mixup=0", "augment.cutmix=0",
)


def load(spec: str, *overrides: str):
    """The resolved config of a shipped recipe, `quickstart.py:student` for example."""
    return config_lib.load_config(
        str(ROOT / "configs" / spec), overrides, sections=sections.SECTIONS, top=sections.TOP
    )


def tiny(spec: str, *overrides: str):
    """The same with a tiny model, two steps and an evaluation."""
    name = load(spec).model.name
    shrink = common.TINY_REGNET if name.startswith("regnet") else common.TINY_DEIT
    return load(spec, *shrink, *overrides)


def train(config, workdir):
    """One start of a run, in this process. Compiling counts here, not speed."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        return loop.train(config, workdir=str(workdir))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
