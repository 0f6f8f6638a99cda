"""Layers in the forms that accelerators like, against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.models import layers


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-6, 6, 2001)
    with_gradient = lambda f: jax.vmap(jax.value_and_grad(lambda x: f(x).astype(jnp.float32)))
    exact = lambda x: jax.nn.gelu(x, approximate=False)
    for dtype, error in ((jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)):
        ours = with_gradient(layers.gelu)(x.astype(dtype))
        # Of the same rounded numbers, computed in f32.
        reference = with_gradient(exact)(x.astype(dtype).astype(jnp.float32))
        assert ours[1].dtype == dtype
        for value, expected in zip(ours, reference, strict=True):
            np.testing.assert_allclose(value, expected, rtol=error, atol=1e-6)
    # Nothing but x: not its erf, of four times the width.
    saved = jax.eval_shape(lambda x: jax.vjp(layers.gelu, x)[1], x)
    assert [leaf.shape for leaf in jax.tree.leaves(saved)] == [x.shape]


def test_patches_are_the_same_where_they_are_a_convolution():
    keys = jax.random.split(jax.random.key(0), 3)
    image, kernel = (
        jax.random.normal(keys[0], (2, 16, 24, 3)),
        jax.random.normal(keys[1], (8, 8, 3, 5)),
    )
    above = jax.random.normal(keys[2], (2, 6, 5))
    ways = layers._convolved_patches, layers._multiplied_patches
    found = []
    for way in ways:
        out, pullback = jax.vjp(way, image, kernel)
        found.append((out, *pullback(above)))
    for ours, reference in zip(*found, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)

    def gradient(*x):
        return jax.vjp(layers.patch_product, *x)[1](above)

    program = jax.jit(gradient).trace(image, kernel)
    for platform, convolutions in (("tpu", True), ("cuda", False), ("cpu", False)):
        text = program.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == convolutions, platform
