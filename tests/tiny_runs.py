"""Running shipped recipes in a form small enough for tests."""

import pathlib

import jax

from deit_jax.distributed import sharding
from deit_jax.train import loop, schema

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = ("data.source=digits",)
# What costs most to compile, off.
NO_AUGMENTATION = (
    "augment.auto_augment=",
    "augment.three_augment=false",
    "augment.color_jitter=0",
    "augment.erasing_prob=0",
    "augment.mixup=0",
    "augment.cutmix=0",
)


def load(spec: str, *overrides: str):
    """The resolved config of a shipped recipe, `quickstart.py:student` for example."""
    return schema.load(str(ROOT / "configs" / spec), overrides)


def tiny(spec: str, *overrides: str):
    """The same in the tiny mode: a very small model, three steps and an evaluation."""
    return load(f"{spec},tiny" if ":" in spec else f"{spec}:tiny", *overrides)


def train(config, workdir):
    """One start of a run, in this process."""
    return loop.train(config, workdir=str(workdir))


def on_one_device(monkeypatch):
    """Runs of this process use one device: compiling for eight takes longer."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    one = jax.make_mesh((1, 1), sharding.AXES, devices=jax.devices()[:1], axis_types=auto)
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: one)


def make_cheap(monkeypatch):
    """Runs of this process use one device, and neither evaluate nor draw curves."""
    on_one_device(monkeypatch)
    monkeypatch.setattr(loop.evaluate, "evaluate", lambda *_: {"eval": {"count": 1}})
    monkeypatch.setattr(loop.pictures, "draw", lambda *_: None)
