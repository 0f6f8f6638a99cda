"""The fused attention equals plain attention, values and gradients; run as plain operations."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deit_jax import models
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError
from deit_jax.models import attention, fused_attention

# Rows, tokens, heads: several rows a grid step, an odd batch, long sequences (their heads a loop).
SHAPES = [(1, 197, 3), (4, 198, 3), (3, 197, 2), (2, 18, 12), (1, 577, 1), (1, 578, 4)]


def _arrays(rows, tokens, heads):
    key, other = jax.random.split(jax.random.key(0))
    shape = (rows, tokens, 3 * heads * fused_attention.HEAD)
    # Scores with a standard deviation of 2: some weights near 1, most near 0.
    qkv = 1.5 * jax.random.normal(key, shape)
    return qkv, jax.random.normal(other, (*shape[:2], shape[2] // 3))


def _value_and_gradient(function, qkv, above):
    """The result, and its gradients to the product and to the bias."""
    bias = jnp.linspace(-0.5, 0.5, qkv.shape[-1])
    out, pullback = jax.vjp(function, qkv, bias)
    return out, *pullback(above.astype(out.dtype))


def _fused(product, bias):
    return fused_attention.run(product, bias, True)


def _plain(heads):
    return lambda product, bias: attention.ATTENTION["xla"].attend(product, bias, heads)


@pytest.mark.parametrize(("rows", "tokens", "heads"), SHAPES)
def test_values_and_gradients_equal_plain_attention(rows, tokens, heads):
    qkv, above = _arrays(rows, tokens, heads)
    plain = _plain(heads)
    with jax.default_matmul_precision("highest"):
        expected = _value_and_gradient(plain, qkv, above)
        ours = _value_and_gradient(_fused, qkv, above)
    for value, reference in zip(ours, expected, strict=True):
        # The bias's is a sum over rows and tokens.
        atol = 8e-6 if value.ndim == 3 else 8e-6 + 1e-7 * rows * tokens
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("rows", "tokens", "heads"), [(1, 197, 3)])
def test_bfloat16_is_as_near_to_f32_as_plain_attention_is(rows, tokens, heads):
    qkv, above = _arrays(rows, tokens, heads)
    half = qkv.astype(jnp.bfloat16)
    plain = _plain(heads)
    exact = _value_and_gradient(plain, half.astype(jnp.float32), above.astype(jnp.bfloat16))
    for ours, theirs, reference in zip(
        _value_and_gradient(_fused, half, above),
        _value_and_gradient(plain, half, above),
        exact,
        strict=True,
    ):
        assert ours.dtype == (jnp.bfloat16 if ours.ndim == 3 else jnp.float32)
        error, usual, size = (
            float(jnp.sqrt(jnp.mean((x.astype(jnp.float32) - y) ** 2)))
            for x, y in ((ours, reference), (theirs, reference), (reference, 0))
        )
        assert error < 1.1 * usual < 0.02 * size, (error, usual, size)


def test_each_device_attends_to_its_own_rows():
    qkv, above = _arrays(16, 17, 6)
    devices = np.array(jax.devices()).reshape(4, 2)
    rows = NamedSharding(Mesh(devices, ("data", "fsdp")), PartitionSpec(("data", "fsdp")))
    run = lambda x, y: _value_and_gradient(_fused, x, y)[:2]
    placed = jax.device_put((qkv, above), rows)
    on_rows = sharding.on_rows(lambda pair: run(*pair), rows)
    program = jax.jit(on_rows).lower(placed).compile()
    assert not any(name in program.as_text() for name in ("all-gather", "all-to-all", "all-reduce"))
    for sharded, whole in zip(program(placed), jax.jit(run)(qkv, above), strict=True):
        assert sharded.sharding.is_equivalent_to(rows, sharded.ndim)
        np.testing.assert_allclose(sharded, whole, atol=1e-6)


def test_rows_that_devices_cannot_share_equally_are_filled_up():
    qkv, above = _arrays(11, 17, 2)
    mesh = sharding.make_mesh()

    def run(x, y):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return _value_and_gradient(_fused, x, y)

    on_all = jax.device_put((qkv, above), sharding.replicated(mesh))
    # Two rows on each of eight devices, never all of them on one.
    assert "f32[2,17,384]" in (text := str(jax.make_jaxpr(run)(*on_all)))
    assert text.count("shard_map[") == 2
    expected = _value_and_gradient(_fused, qkv, above)
    for shared, whole in zip(jax.jit(run)(*on_all), expected, strict=True):
        np.testing.assert_allclose(shared, whole, rtol=1e-6, atol=1e-5)


@pytest.mark.long
def test_a_model_may_use_it(monkeypatch):
    """Logits and gradients of a model whose attention is fused, against the same with XLA's."""
    usable = attention.Implementation(lambda *x: _fused(*x[:2]), lambda *_: None)
    monkeypatch.setitem(attention.ATTENTION, "pallas", usable)
    small = {"image_size": 32, "depth": 2, "embed_dim": 128, "num_heads": 2, "num_classes": 5}
    image = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))

    def results(name):
        model = models.create_model("deit_tiny_distilled_patch16_224", attention=name, **small)
        variables = models.init_variables(model, jax.random.key(0))
        loss = lambda v: models.apply(model, v, image).logits.std()
        return jax.value_and_grad(loss)(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), results("pallas"), results("xla")
    )


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ((197, 384, 6, "float32"), "needs a TPU and bfloat16"),
        ((197, 384, 12, "bfloat16"), "needs heads of 64, not 32"),
        ((1025, 768, 12, "bfloat16"), "takes up to 785 tokens of 768, not 1025 of 768"),
        ((197, 384, 6, "bfloat16"), None),
        ((578, 1024, 16, "bfloat16"), None),
    ],
)
def test_where_it_cannot_run_another_is_taken_and_asking_for_it_says_why(wanted, reason):
    tpu = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
    assert attention.resolve("auto", *wanted, tpu) == ("xla" if reason else "pallas")
    if reason:
        with pytest.raises(ConfigError, match=reason):
            attention.resolve("pallas", *wanted, tpu)
