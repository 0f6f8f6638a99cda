"""What every augmentation stage is given when it is made, and what the factories share."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from deit_jax.errors import ConfigError

# From a name to the keys of that name, one per row ([n]); one key in a batch stage.
Draw = Callable[[str], jax.Array]
PixelStage = Callable[[Draw, jax.Array], jax.Array]
BatchStage = Callable[[Draw, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Supplied(NamedTuple):
    """Facts of the run that a stage may depend on."""

    image_size: int  # side of the images in pixels
    num_classes: int  # length of a target
    batch_size: int  # rows of the global batch
    repeats: int = 1  # rows that show the same image
    mesh: jax.sharding.Mesh | None = None  # whose devices share the batch, None for one device
    # int32 [V, B]: all that `canvas_index` may be. Crops then go from device to device, row by row.
    canvas_orders: np.ndarray | None = None


def noted(stage: Callable, *notes: str) -> Callable:
    """`stage` with what its options amount to, for `describe`."""
    stage.notes = [note for note in notes if note]
    return stage


def check_share(**shares: float) -> None:
    """Raises ConfigError unless every value is in [0, 1]."""
    for name, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"{name} must be between 0 and 1, not {value}")


def check_range(most: float, **ranges: tuple[float, float]) -> None:
    """Raises ConfigError unless every value is (low, high) with 0 < low <= high <= most."""
    for name, bounds in ranges.items():
        if len(bounds) != 2 or not 0.0 < bounds[0] <= bounds[1] <= most:
            raise ConfigError(
                f"{name} must be (low, high) with 0 < low <= high <= {most:g}, not {tuple(bounds)}"
            )
