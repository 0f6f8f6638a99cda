"""Random keys as pure functions of (seed, purpose, step, position).

No key is carried in the training state: a run that is killed and resumed draws
exactly what it would have drawn, and because rows are numbered in the global
batch, the draws do not depend on how many devices share it.
"""

import enum

import jax
import jax.numpy as jnp


class Purpose(enum.IntEnum):
    """What a key is drawn for. The numbers are part of a run's identity."""

    INIT = 0
    AUGMENT = 1
    DROP = 2


def step_key(base_key: jax.Array, purpose: Purpose, step: jax.Array | int) -> jax.Array:
    """The key for one purpose at one step; `base_key` is `jax.random.key(seed)`."""
    return jax.random.fold_in(jax.random.fold_in(base_key, int(purpose)), step)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One key for each of the `rows` positions of the global batch, shape [rows]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def base_key(seed: int) -> jax.Array:
    """The key of a run, from which everything random is derived.

    Threefry, whatever jax's default is set to: its draws do not depend on sharding.
    """
    return jax.random.key(seed, impl="threefry2x32")
