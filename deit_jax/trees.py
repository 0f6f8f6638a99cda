"""Leaves of nested dicts by their path names, `blocks_0/attn/qkv/kernel`, and back."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def path_name(path: tuple) -> str:
    """'blocks_0/norm1/scale' for the key path of a nested dict."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """`{'blocks_0/norm1/scale': leaf, ...}`, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(leaves: Mapping[str, Any]) -> dict[str, PyTree]:
    """`{'a/b': x}` as `{'a': {'b': x}}`: the inverse of `named_leaves` for nested dicts."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_with_name(function: Callable, tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function takes the leaf's path name first."""
    named = lambda path, *leaves: function(path_name(path), *leaves)
    return jax.tree_util.tree_map_with_path(named, tree, *rest)


def norm(tree: PyTree) -> jax.Array:
    """The L2 norm of all leaves together, f32.

    Leaves of the same shape, as blocks have them, are summed up together: one by one each is two
    kernels on a GPU, hundreds in all.
    """
    alike: dict[Any, list[jax.Array]] = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        alike[leaf.shape, leaf.dtype].append(leaf)
    squares = (jnp.square(jnp.stack(group).astype(jnp.float32)) for group in alike.values())
    return jnp.sqrt(sum((jnp.sum(square) for square in squares), start=jnp.float32(0)))
