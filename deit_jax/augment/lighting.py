"""AlexNet's color noise: a random shift of all pixels along the colors that photos vary in."""

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.augment import random_bits
from deit_jax.augment.normalize import IMAGENET_STD
from deit_jax.augment.stage import Draw, PixelStage, Supplied
from deit_jax.errors import ConfigError, check_at_most

# Principal components of ImageNet's RGB values in [0, 1] (the columns) and their deviations, as
# in fb.resnet.torch and pycls.
EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)


def color_shift(alpha: jax.Array) -> jax.Array:
    """f32 [n, 3], what is added to RGB in [0, 1], for alpha f32 [n, 3], a weight per component."""
    weights = (alpha * EIGENVALUES[None])[:, None]
    return jnp.sum(EIGENVECTORS[None] * weights, axis=-1)


def make_lighting(
    supplied: Supplied, *, pca_std: float = 0.0, std: tuple[float, float, float] = IMAGENET_STD
) -> PixelStage | None:
    """PCA lighting: one random shift of all pixels along ImageNet's principal colors.

    Args:
      pca_std: deviation of the normal weight of each component (AlexNet's and pycls's 0.1);
        0 is off.
      std: of the normalization, which has been done already.
    """
    if not pca_std >= 0:
        raise ConfigError(f"pca_std must be at least 0 (off), not {pca_std}")
    check_at_most(100, pca_std=pca_std)
    if pca_std == 0:
        return None

    def lit(draw: Draw, image: jax.Array) -> jax.Array:
        alpha = pca_std * random_bits.normal(random_bits.words(draw("lighting"), 3))
        shift = color_shift(alpha) / jnp.asarray(std, jnp.float32)[None]
        return image + shift[:, None, None]

    return lit
