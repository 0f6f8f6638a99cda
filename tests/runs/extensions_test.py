"""What a user adds in a file of one's own, a function and a line in a table each, in whole runs.

The additions stand in a config file, so that they are there wherever the config is loaded, also
in another process. Several share a run, because compiling is most of a run's time.
"""

import os
import subprocess
import sys

import pytest
import tiny_runs

from deit_jax import cli, data, losses
from deit_jax.augment import operations, pipeline
from deit_jax.models import registry
from deit_jax.optim import optimizers
from deit_jax.tracking.jsonl import read_jsonl
from deit_jax.train import schema

TABLES = (
    data.SOURCES,
    losses.LABEL_LOSSES,
    operations.OPERATIONS,
    optimizers.OPTIMIZERS,
    pipeline.IMAGE_STAGES,
    registry.ARCHITECTURES,
)

FOCAL = '''
def focal(logits, target, *, gamma: float = 2.0):
    """Focal loss (arXiv 1708.02002)."""
    share = jax.nn.softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.sum(target * (1 - share) ** gamma * jnp.log(share + 1e-9), axis=-1))

losses.LABEL_LOSSES["focal"] = focal
'''

LION = '''
def lion(rules, *, beta1: float = 0.9, beta2: float = 0.99):
    """Lion (arXiv 2302.06675)."""
    return optax.chain(optax.scale_by_lion(beta1, beta2), optimizers.decay_weights(rules))

optimizers.OPTIMIZERS["lion"] = lion
'''

MUON = '''
def muon(rules, *, beta: float = 0.95):
    """Muon for matrices, Adam for the rest."""
    direction = optax.chain(optax.contrib.muon(1.0, beta=beta), optax.scale(-1.0))
    return optax.chain(direction, optimizers.decay_weights(rules))

optimizers.OPTIMIZERS["muon"] = muon
'''

GRID_MASK = '''
def grid_mask(supplied, *, grid_prob: float = 0.0, grid_size: int = 8):
    """Grid mask (arXiv 2001.04086)."""
    if grid_prob == 0:
        return None
    line = jnp.arange(supplied.image_size) % grid_size < grid_size // 2
    hole = (line[:, None] & line[None, :])[None, :, :, None]

    def stage(draw, image):
        masked = jax.vmap(lambda key: jax.random.bernoulli(key, grid_prob))(draw("grid_mask"))
        return jnp.where(hole & masked[:, None, None, None], 0.0, image)

    return stage

pipeline.IMAGE_STAGES["grid_mask"] = grid_mask
'''

OPERATION = '''
def swap_channels(pixels, argument):
    """Red and blue exchanged."""
    return pixels[..., ::-1]

operations.OPERATIONS["SwapChannels"] = operations.Operation(pixels=swap_channels)
'''

MODEL = '''
class PatchNet(models.Model):
    """Patches, a hidden layer and their mean."""

    width: int = 16

    @nn.compact
    def __call__(self, image, *, train=False, keys=None, capture=False):
        rows, height, width, channels = image.shape
        x = image.reshape(rows, height // 4, 4, width // 4, 4, channels)
        x = x.swapaxes(2, 3).reshape(rows, -1, 16 * channels)
        x = nn.relu(nn.Dense(self.width, name="hidden")(x)).mean(axis=1)
        return models.Output(nn.Dense(self.num_classes, name="head")(x), None), {}

registry.ARCHITECTURES["patchnet"] = (PatchNet, {"image_size": 16})
'''

FORMAT = '''
class Stripes(data.Source):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def get(self, indices):
        rows = np.arange(16)[None] % (2 + np.asarray(indices)[:, None] % 2)
        images = np.repeat((100 * rows).astype(np.uint8)[:, :, None, None], 16, axis=2)
        return list(np.repeat(images, 3, axis=3)), np.asarray(indices) % 2

    def record_name(self, index):
        return f"stripes {index}"


def open_stripes(*, count: int = 64) -> data.Data:
    """Images of stripes."""
    return data.Data(Stripes(count), Stripes(16), 2, ("narrow", "wide"), "stripes")

data.SOURCES["stripes"] = open_stripes
'''

HEADER = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from deit_jax import data, losses, models
from deit_jax.augment import operations, pipeline
from deit_jax.models import registry
from deit_jax.optim import optimizers
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(CONFIG)
"""

TRAIN = {
    "batch_size": 16,
    "total_steps": 2,
    "log_every_steps": 1,
    "eval_every_steps": 2,
    "checkpoint_every_steps": 1,
}
SMALL = {
    "input": {"canvas": 16},
    "schedule": {"warmup_epochs": 0.0},
    "train": TRAIN,
    "eval": {"batch_size": 16, "crop_ratio": 1.0, "canvas": 16},
}
OFF = {"auto_augment": "", "color_jitter": 0.0, "erasing_prob": 0.0, "mixup": 0.0, "cutmix": 0.0}

RUNS = {
    "loss, optimizer, stage and operation": (
        [FOCAL, LION, GRID_MASK, OPERATION],
        {
            "data": {"source": "digits"},
            "model": {
                "name": "deit_tiny_patch16_224",
                "image_size": 16,
                "patch_size": 8,
                "embed_dim": 16,
                "depth": 1,
                "num_heads": 2,
            },
            "augment": OFF
            | {
                "auto_augment": "rand-m9-n1",
                "operations": ("Invert", "SwapChannels"),
                "grid_prob": 0.5,
            },
            "loss": {"base": "focal", "gamma": 1.5},
            "optim": {"name": "lion", "beta2": 0.95},
        },
        [
            "focal: Focal loss (arXiv 1708.02002) (gamma 1.5)",
            "lion: Lion (arXiv 2302.06675) (beta1 0.9, beta2 0.95)",
            "Grid mask (arXiv 2001.04086)",
            "SwapChannels",
        ],
    ),
    "model, optimizer and data format": (
        [MUON, MODEL, FORMAT],
        {
            "data": {"source": "stripes", "count": 48},
            "model": {"name": "patchnet", "width": 8},
            "augment": OFF,
            "optim": {"name": "muon"},
        },
        ["patchnet at 16x16", "muon: Muon for matrices, Adam for the rest (beta 0.95)", "stripes"],
    ),
}


@pytest.fixture(autouse=True)
def tables():
    """Every table as it was before."""
    before = [dict(table) for table in TABLES]
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("name", RUNS)
def test_additions_are_explained_trained_resumed_and_evaluated(
    name, tmp_path, compilation_cache, monkeypatch, capsys
):
    additions, config, words = RUNS[name]
    file = tmp_path / "mine.py"
    file.write_text(f"CONFIG = {SMALL | config!r}\n{HEADER}{''.join(additions)}")
    tiny_runs.on_one_device(monkeypatch)
    assert cli.main(["explain", f"--config={file}"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in words), text

    workdir = tmp_path / "run"
    load = lambda *overrides: schema.load(str(file), [compilation_cache, *overrides])
    tiny_runs.train(load("train.stop_at_step=1"), workdir)
    tiny_runs.train(load(), workdir)
    assert "resuming after step 1 of 2" in capsys.readouterr().out
    steps = [line["step"] for line in read_jsonl(workdir / "metrics.jsonl")]
    assert steps == sorted(steps) and steps[0] == 1 and steps[-1] == 2

    assert cli.main(["evaluate", f"--checkpoint={workdir}", f"--config={file}"]) == 0
    assert "class" in capsys.readouterr().out


@pytest.mark.long
def test_another_process_finds_the_additions_through_the_config(tmp_path, monkeypatch):
    """A command that reads the run knows the model once it has loaded the config file."""
    additions, config, _ = RUNS["model, optimizer and data format"]
    file = tmp_path / "mine.py"
    file.write_text(f"CONFIG = {SMALL | config!r}\n{HEADER}{''.join(additions)}")
    tiny_runs.on_one_device(monkeypatch)
    tiny_runs.train(schema.load(str(file), ["train.total_steps=1"]), tmp_path / "run")
    command = [sys.executable, "-c", "import sys; from deit_jax import cli; sys.exit(cli.main())"]
    arguments = ["evaluate", f"--checkpoint={tmp_path / 'run'}", f"--config={file}"]
    run = subprocess.run(
        [*command, *arguments],
        cwd=tiny_runs.ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
