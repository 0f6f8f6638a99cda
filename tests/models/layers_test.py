"""Layers in the forms that accelerators like, against the plain ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize(("dtype", "error"), [(jnp.float32, 2e-5), (jnp.bfloat16, 2**-7)])
def test_layer_norm_is_that_of_flax_in_f32(dtype, error, mean):
    """Of the same rounded numbers, values and gradients; 30 standard deviations off zero too."""
    keys = jax.random.split(jax.random.key(0), 4)
    x = (mean + jax.random.normal(keys[0], (3, 7, 192))).astype(dtype)
    above = jax.random.normal(keys[1], x.shape).astype(dtype)
    scale, bias = (1 + 0.3 * jax.random.normal(key, (192,)) for key in keys[2:])
    params = {"params": {"scale": scale, "bias": bias}}

    def results(norm, x, above):
        out, pullback = jax.vjp(norm.apply, params, x)
        to_params, to_x = pullback(above)
        return {"out": out, "x": to_x} | to_params["params"]

    ours = results(layers.LayerNorm(dtype, 1e-6), x, above)
    exact = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False)
    expected = results(exact, x.astype(jnp.float32), above.astype(jnp.float32))
    assert ours["out"].dtype == ours["x"].dtype == dtype
    for name, value in expected.items():
        found = ours[name].astype(jnp.float32)
        np.testing.assert_allclose(found, value, rtol=error, atol=error * 5, err_msg=name)


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
