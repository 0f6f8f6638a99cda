"""What a user adds in a file of one's own, one function and one line in a table each, in whole runs.

The files are config files, so that the additions are there wherever the config is loaded.
Several additions share a run, because compiling is most of a run's time.
"""

import pytest
import tiny_runs

from deit_jax import cli, data, losses
from deit_jax.augment import operations, pipeline
from deit_jax.models import registry
from deit_jax.optim import optimizers
from deit_jax.tracking.writers import read_jsonl
from deit_jax.train import schema

FOCAL = '''
import jax, jax.numpy as jnp
from deit_jax import losses

def focal(logits, target, *, gamma: float = 2.0):
    """Focal loss (arXiv 1708.02002)."""
    p = jax.nn.softmax(logits.astype(jnp.float32))
    return -jnp.mean(jnp.sum((1 - p) ** gamma * target * jnp.log(p + 1e-9), axis=-1))

losses.LABEL_LOSSES["focal"] = focal
'''

LION = '''
import optax
from deit_jax.optim import optimizers

def lion(masks, *, beta1: float = 0.9, beta2: float = 0.99):
    """Lion (arXiv 2302.06675)."""
    return optax.chain(optax.scale_by_lion(beta1, beta2), optimizers.decay_weights(masks))

optimizers.OPTIMIZERS["lion"] = lion
'''

MUON = '''
import optax
from deit_jax.optim import optimizers

def muon(masks, *, momentum: float = 0.95):
    """Muon for matrices, Adam for the rest (optax.contrib)."""
    direction = optax.chain(optax.contrib.muon(1.0, beta=momentum), optax.scale(-1.0))
    return optax.chain(direction, optimizers.decay_weights(masks))

optimizers.OPTIMIZERS["muon"] = muon
'''

EXPLAINED = {"focal": "Focal loss (arXiv 1708.02002)", "lion": "Lion (arXiv 2302.06675)"}
