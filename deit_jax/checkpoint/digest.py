"""A 32-bit digest of every array: guards checkpoints against storage damage, not malice.

Storage libraries restore bit-flipped array data silently, so values are checked
by their own sum: the bit pattern of each element times an odd weight that depends on its
position, summed modulo 2**32. Integer sums have no order, so the digest is the same for
any sharding, device count or host; an odd weight means that no single flipped bit can
cancel.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.trees import PyTree, named_leaves

_MIX = 0x9E3779B1  # odd; 2**32 / golden ratio
_CHUNK = 1 << 20
_IN_FLIGHT = 8
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def digest_tree(tree: PyTree) -> dict[str, int]:
    """The digest of every leaf, as unsigned ints, computed where the arrays live.

    All processes must call it, and all get the full result.
    """
    leaves = named_leaves(tree)
    sums: list[jax.Array] = []
    for leaf in leaves.values():
        sums.append(_digest_in_place(leaf))
        # Collectives on virtual CPU devices starve each other when dozens are in flight.
        if len(sums) > _IN_FLIGHT:
            sums[-_IN_FLIGHT].block_until_ready()
    return dict(zip(leaves, (int(value) for value in jax.device_get(sums)), strict=True))


def digest_array(array: np.ndarray) -> int:
    """The same digest of a host array, in numpy."""
    words = np.ascontiguousarray(array).reshape(-1).view(np.dtype(_words(array.dtype)))
    total = 0
    for start in range(0, words.size, _CHUNK):
        part = words[start : start + _CHUNK].astype(np.uint32)
        position = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        total += int(np.sum(part * _weights(position, np), dtype=np.uint32))
    return total % 2**32


def _words(dtype: Any) -> Any:
    return _WORDS[np.dtype(dtype).itemsize]


def _weights(position: Any, xp: Any) -> Any:
    """Odd uint32 weights; neighbouring positions get unrelated ones."""
    mixed = position * xp.uint32(_MIX)
    mixed = (mixed ^ (mixed >> xp.uint32(15))) * xp.uint32(_MIX)
    return (mixed ^ (mixed >> xp.uint32(13))) | xp.uint32(1)


def _digest_in_place(leaf: jax.Array) -> jax.Array:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return _jitted(None)(leaf)
    return _jitted(jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))(leaf)


@functools.cache
def _jitted(out_sharding: jax.sharding.NamedSharding | None) -> Any:
    # One small program for each shape: a single program for all leaves compiles for seconds.
    return jax.jit(_digest, out_shardings=out_sharding)


def _digest(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    # 64-bit types become a trailing axis of two words.
    words = jax.lax.bitcast_convert_type(x, _words(x.dtype)).astype(jnp.uint32)
    # Positions from one iota per axis, so that a sharded array is never reshaped, which gathers it.
    position = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        position = position + iota * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.sum(words * _weights(position, jnp), dtype=jnp.uint32)
