"""AutoAugment's ImageNet policies (arXiv 1805.09501) as timm's strings name them.

A policy is 25 sub-policies of two operations, each with its own probability and
magnitude. An image draws one sub-policy; `-mstdX` adds timm's noise to the magnitudes.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment import random_bits
from deit_jax.augment.operations import (
    LEVEL_DENOMINATOR,
    RAND_AUGMENT_OPERATIONS,
    argument,
    noisy_magnitude,
)
from deit_jax.errors import unknown

# One sub-policy a row: operation, probability, magnitude, twice. Rows that appear twice
# are drawn twice as often.
PAPER = (
    ("Posterize", 0.4, 8, "Rotate", 0.6, 9),
    ("Solarize", 0.6, 5, "AutoContrast", 0.6, 5),
    ("Equalize", 0.8, 8, "Equalize", 0.6, 3),
    ("Posterize", 0.6, 7, "Posterize", 0.6, 6),
    ("Equalize", 0.4, 7, "Solarize", 0.2, 4),
    ("Equalize", 0.4, 4, "Rotate", 0.8, 8),
    ("Solarize", 0.6, 3, "Equalize", 0.6, 7),
    ("Posterize", 0.8, 5, "Equalize", 1.0, 2),
    ("Rotate", 0.2, 3, "Solarize", 0.6, 8),
    ("Equalize", 0.6, 8, "Posterize", 0.4, 6),
    ("Rotate", 0.8, 8, "Color", 0.4, 0),
    ("Rotate", 0.4, 9, "Equalize", 0.6, 2),
    ("Equalize", 0.0, 7, "Equalize", 0.8, 8),
    ("Invert", 0.6, 4, "Equalize", 1.0, 8),
    ("Color", 0.6, 4, "Contrast", 1.0, 8),
    ("Rotate", 0.8, 8, "Color", 1.0, 2),
    ("Color", 0.8, 8, "Solarize", 0.8, 7),
    ("Sharpness", 0.4, 7, "Invert", 0.6, 8),
    ("ShearX", 0.6, 5, "Equalize", 1.0, 9),
    ("Color", 0.4, 0, "Equalize", 0.6, 3),
    ("Equalize", 0.4, 7, "Solarize", 0.2, 4),
    ("Solarize", 0.6, 5, "AutoContrast", 0.6, 5),
    ("Invert", 0.6, 4, "Equalize", 1.0, 8),
    ("Color", 0.6, 4, "Contrast", 1.0, 8),
    ("Equalize", 0.8, 8, "Equalize", 0.6, 3),
)
TPU_EFFICIENTNET = (
    ("Equalize", 0.8, 1, "ShearY", 0.8, 4),
    ("Color", 0.4, 9, "Equalize", 0.6, 3),
    ("Color", 0.4, 1, "Rotate", 0.6, 8),
    ("Solarize", 0.8, 3, "Equalize", 0.4, 7),
    ("Solarize", 0.4, 2, "Solarize", 0.6, 2),
    ("Color", 0.2, 0, "Equalize", 0.8, 8),
    ("Equalize", 0.4, 8, "SolarizeAdd", 0.8, 3),
    ("ShearX", 0.2, 9, "Rotate", 0.6, 8),
    ("Color", 0.6, 1, "Equalize", 1.0, 2),
    ("Invert", 0.4, 9, "Rotate", 0.6, 0),
    ("Equalize", 1.0, 9, "ShearY", 0.6, 3),
    ("Color", 0.4, 7, "Equalize", 0.6, 0),
    ("Posterize", 0.4, 6, "AutoContrast", 0.4, 7),
    ("Solarize", 0.6, 8, "Color", 0.6, 9),
    ("Solarize", 0.2, 4, "Rotate", 0.8, 9),
    ("Rotate", 1.0, 7, "TranslateYRel", 0.8, 9),
    ("ShearX", 0.0, 0, "Solarize", 0.8, 4),
    ("ShearY", 0.8, 0, "Color", 0.6, 4),
    ("Color", 1.0, 0, "Rotate", 0.6, 2),
    ("Equalize", 0.8, 4, "Equalize", 0.0, 8),
    ("Equalize", 1.0, 4, "AutoContrast", 0.6, 2),
    ("ShearY", 0.4, 7, "SolarizeAdd", 0.6, 7),
    ("Posterize", 0.8, 2, "Solarize", 0.6, 10),
    ("Solarize", 0.6, 8, "Equalize", 0.6, 1),
    ("Color", 0.8, 6, "Rotate", 0.4, 5),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAugment:
    """A parsed string such as 'original-mstd0.5'.

    Attributes:
      rows: the sub-policies, see `PAPER`.
      posterize: key of `operations.POSTERIZE_BITS`.
      magnitude_std: deviation of the noise of the magnitudes.
    """

    rows: tuple[tuple, ...]
    posterize: str
    magnitude_std: float = 0.0
    operations = RAND_AUGMENT_OPERATIONS

    @property
    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Operation int32, probability and magnitude float32, each [25 sub-policies, 2]."""
        rows = [(row[:3], row[3:]) for row in self.rows]
        numbers = [[self.operations.index(name) for name, _, _ in row] for row in rows]
        fields = np.array([[fields for _, *fields in row] for row in rows], np.float32)
        return np.array(numbers, np.int32), fields[..., 0], fields[..., 1]

    @property
    def shares(self) -> np.ndarray:
        """float64 [2, 15]: how often each operation is applied as first and as second."""
        numbers, probs, _ = self.tables
        shares = np.zeros((2, len(self.operations)))
        for layer in range(2):
            np.add.at(shares[layer], numbers[:, layer], probs[:, layer] / len(numbers))
        return shares

    @property
    def note(self) -> str:
        """What the string says beyond the policy's name, in words."""
        std = self.magnitude_std
        return f"magnitudes with deviation {std:g}" if std else ""

    def draw(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Operations int32 [n, 2] (15 where none is applied), arguments float32 [n, 2]."""
        numbers, probs, magnitudes = (jnp.asarray(table) for table in self.tables)
        words = random_bits.words(keys, 1 + 3 * 2)
        chosen = random_bits.integer(words[:, 0], jnp.int32(len(numbers) - 1))
        applied, magnitude, sign = jnp.split(words[:, 1:], 3, axis=1)
        operations = jnp.where(
            random_bits.chance(applied, probs[chosen]), numbers[chosen], len(self.operations)
        )
        magnitude = noisy_magnitude(
            magnitude, magnitudes[chosen], std=self.magnitude_std, maximum=LEVEL_DENOMINATOR
        )
        return operations, argument(
            self.operations,
            operations,
            magnitude,
            sign >> 31 == 1,
            increasing=False,
            posterize=self.posterize,
        )


def auto_augment(rows: tuple[tuple, ...], posterize: str, config: str) -> AutoAugment:
    """AutoAugment: one of 25 pairs of operations, each with its own probability and magnitude.

    Args:
      rows, posterize: see `AutoAugment`.
      config: e.g. 'original' or 'v0r-mstd0.5' (timm `auto_augment_transform`).

    Raises:
      ConfigError: a section that timm does not know.
    """
    std = 0.0
    for section in config.split("-")[1:]:
        match = re.fullmatch(r"mstd(\d+(?:\.\d+)?)", section)
        if match is None:
            raise unknown(f"AutoAugment section of {config!r}:", section, ["mstd0.5"])
        std = float(match[1])
    return AutoAugment(rows=rows, posterize=posterize, magnitude_std=std)
