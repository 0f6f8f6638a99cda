"""Weights that any framework can make: numbers that depend on a tensor's name and shape alone."""

import zlib

import numpy as np


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a trained model's size, so that activations stay of order one.

    Gains near one, variances positive, matrices scaled by their fan-in, everything else small.
    """
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(".gamma") or ".gamma_" in name:
        values = rng.uniform(0.1, 0.6, shape)
    elif name.endswith(".weight") and len(shape) == 1:
        values = rng.uniform(0.7, 1.3, shape)
    elif name.endswith(".weight"):
        values = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    else:
        values = rng.standard_normal(shape) * 0.1
    return values.astype(np.float32)


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict of the given shapes."""
    return {name: random_tensor(name, shape) for name, shape in shapes.items()}


def random_image(height: int, width: int, rows: int = 2) -> np.ndarray:
    """Normalised images f32 [rows, height, width, 3]."""
    rng = np.random.RandomState(20210101)
    return rng.standard_normal((rows, height, width, 3)).astype(np.float32)
