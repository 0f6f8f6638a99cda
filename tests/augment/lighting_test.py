"""PCA lighting against the published code, restated in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import Supplied, describe, lighting, make_augment, pipeline
from deit_jax.augment import random_bits as bits
from deit_jax.augment.normalize import IMAGENET_MEAN, IMAGENET_STD, normalize
from deit_jax.errors import ConfigError

SUPPLIED = Supplied(image_size=8, num_classes=4, batch_size=4)
# pycls.datasets.imagenet.
EIG_VALS = [[0.2175, 0.0188, 0.0045]]
EIG_VECS = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]


def published(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lighting of one image in [0, 1], then the normalization, as pycls does them."""
    alpha = np.repeat(alpha.reshape(1, 3), 3, axis=0)
    values = np.repeat(np.array(EIG_VALS), 3, axis=0)
    rgb = np.sum(np.array(EIG_VECS) * alpha * values, axis=1)
    return (image + rgb - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)


def drawn(key: jax.Array, rows: int) -> np.ndarray:
    """The weights [rows, 3] that the stage draws at pca_std=0.1."""
    words = bits.words(bits.named(jax.random.split(key, rows), "lighting"), 3)
    return 0.1 * np.asarray(bits.normal(words))


def lit(key: jax.Array, image: jax.Array, **options) -> np.ndarray:
    stage = lighting.make_lighting(SUPPLIED, **options)
    keys = jax.random.split(key, len(image))
    return np.asarray(stage(lambda name: bits.named(keys, name), image))


def test_pixels_are_those_of_the_published_code():
    levels = np.random.RandomState(0).randint(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    key = jax.random.key(1)
    out = lit(key, normalize(levels, IMAGENET_MEAN, IMAGENET_STD), pca_std=0.1)
    expected = [published(x / 255, a) for x, a in zip(levels, drawn(key, 4), strict=True)]
    np.testing.assert_allclose(out, np.stack(expected), atol=2e-6)
    # The normalization's own deviation is divided by.
    raw = lit(key, jnp.zeros((4, 8, 8, 3)), pca_std=0.1, std=(1.0, 0.5, 0.25))[:, 0, 0]
    shift = lit(key, jnp.zeros((4, 8, 8, 3)), pca_std=0.1)[:, 0, 0]
    np.testing.assert_allclose(raw, shift * IMAGENET_STD / (1.0, 0.5, 0.25), rtol=1e-5)


def test_weights_are_independent_normals_of_the_asked_deviation():
    shifts = lit(jax.random.key(2), jnp.zeros((20_000, 1, 1, 3)), pca_std=0.2)[:, 0, 0]
    basis = np.array(EIG_VECS) * np.array(EIG_VALS) / np.array(IMAGENET_STD)[:, None]
    alpha = shifts @ np.linalg.inv(basis).T
    np.testing.assert_allclose(alpha.mean(0), 0.0, atol=5 * 0.2 / 20_000**0.5)
    np.testing.assert_allclose(
        np.cov(alpha.T), 0.04 * np.eye(3), atol=5 * 0.04 * (2 / 20_000) ** 0.5
    )


def test_off_by_default_it_is_not_in_the_program(monkeypatch):
    shapes = {
        "canvas": jnp.zeros((4, 8, 8, 3), jnp.uint8),
        "size": jnp.full((4, 2), 8),
        "label": jnp.zeros(4, jnp.int32),
    }
    trace = lambda **on: str(
        jax.make_jaxpr(make_augment(SUPPLIED, **on))(jax.random.key(0), shapes)
    )
    before = trace()
    assert trace(pca_std=0.1) != before
    stage = describe(SUPPLIED, {"pca_std": 0.1})[3]
    assert (stage.name, stage.options["pca_std"]) == ("lighting", 0.1)
    monkeypatch.delitem(pipeline.IMAGE_STAGES, "lighting")
    assert trace() == before


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_deviation_below_zero_is_refused(value):
    with pytest.raises(ConfigError, match="pca_std must be at least 0"):
        lighting.make_lighting(SUPPLIED, pca_std=value)
