"""Position embeddings for another number of patches."""

import numpy as np

from deit_jax.data.cubic import cubic_kernel


def resize_position(
    position: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> np.ndarray:
    """Patch rows f32 [1, h w, D] of `old_grid` (h, w) -> [1, h' w', D] of `new_grid`.

    Bicubic as `torch.nn.functional.interpolate(mode='bicubic', align_corners=False)`, which
    the official fine-tuning code uses (paper section 4): kernel a = -.75, edges clamped, no
    antialiasing. `jax.image.resize` has a = -.5 and renormalizes at the edges: 8 % off.
    """
    if old_grid == new_grid:
        return position
    dim = position.shape[-1]
    grid = position.reshape(*old_grid, dim).astype(np.float64)
    rows = _weights(old_grid[0], new_grid[0])
    columns = _weights(old_grid[1], new_grid[1])
    resized = np.einsum("yh,xw,hwd->yxd", rows, columns, grid, optimize=True)
    return resized.reshape(1, -1, dim).astype(np.float32)


def _weights(old: int, new: int) -> np.ndarray:
    """[new, old] matrix of one axis."""
    center = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(center).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        index = np.clip(first + tap, 0, old - 1)
        np.add.at(weights, (np.arange(new), index), cubic_kernel(center - (first + tap), -0.75))
    return weights
