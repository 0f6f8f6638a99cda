"""What `auto` stands for on devices of several kinds, which need not be here."""

import functools
import types

import jax
import pytest

from deit_jax import models
from deit_jax.errors import ConfigError
from deit_jax.models import accelerator, attention


def gpu(capability, kind="some GPU"):
    return types.SimpleNamespace(
        platform="gpu", device_kind=kind, compute_capability=capability, id=0
    )


TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite")
CPU = types.SimpleNamespace(platform="cpu", device_kind="cpu")
T4 = gpu("7.5", "Tesla T4")


@pytest.mark.parametrize(
    "device, dtype, kernel",
    [
        (T4, "float32", "xla"),
        (gpu("7.0"), "float32", "xla"),
        (gpu("6.0"), "float32", "xla"),
        (gpu("8.0"), "bfloat16", "cudnn"),
        (gpu("8.6"), "bfloat16", "cudnn"),
        (gpu("9.0"), "bfloat16", "cudnn"),
        # As a number, not as text.
        (gpu("10.0"), "bfloat16", "cudnn"),
        (gpu("12.0"), "bfloat16", "cudnn"),
        # AMD's have neither cuDNN nor such a number.
        (gpu("gfx942"), "float32", "xla"),
        (TPU, "bfloat16", "pallas"),
        (CPU, "float32", "xla"),
    ],
)
def test_auto_is_what_the_device_has(monkeypatch, device, dtype, kernel):
    # The device that jax has.
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    assert models.create_model("deit_tiny_patch16_224", dtype="auto").dtype == dtype
    assert accelerator.resolve_dtype("auto") == dtype
    small = functools.partial(attention.resolve, tokens=197, dim=384, num_heads=6)
    assert small("auto", dtype="bfloat16") == kernel
    assert small("auto", dtype="float16") == ("xla" if kernel == "pallas" else kernel)
    assert small("auto", dtype="float32") == "xla"
    assert small("xla", dtype="bfloat16") == "xla"
    # One that is named.
    monkeypatch.setattr(jax, "devices", lambda *_: [CPU])
    assert accelerator.resolve_dtype("auto", device) == dtype
    assert small("auto", dtype="bfloat16", device=device) == kernel
    assert models.create_model("regnety_002", dtype="auto", device=device).dtype == dtype
    assert accelerator.resolve_dtype("float16", device) == "float16"


@pytest.mark.parametrize(
    "device, dtype", [(T4, "float16"), (CPU, "bfloat16"), (gpu("8.0"), "float32")]
)
def test_cudnn_where_it_cannot_run_is_refused(device, dtype):
    with pytest.raises(ConfigError, match=f"8.0 or more.*{device.device_kind}.*dtype is {dtype}"):
        models.create_model("deit_tiny_patch16_224", attention="cudnn", dtype=dtype, device=device)


def test_cudnn_is_taken_where_it_can_run():
    model = models.create_model(
        "deit_tiny_patch16_224", attention="cudnn", dtype="bfloat16", device=gpu("8.0")
    )
    assert model.attention == "cudnn"


def test_the_program_follows_the_device(monkeypatch):
    """The blocks ask for the kernel on a device of 8.0, and on one of 7.5 they do not."""
    asked = []

    def kernel(query, *_, implementation, **__):
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    for capability, expected in {"8.0": ["cudnn"] * 2, "7.5": []}.items():
        asked.clear()
        monkeypatch.setattr(jax, "devices", lambda *_, c=capability: [gpu(c)])
        model = models.create_model(
            "deit_tiny_patch16_224", dtype="bfloat16", image_size=32, depth=2, num_classes=2
        )
        jax.eval_shape(model.init, jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)))
        assert asked == expected


def test_an_accelerator_that_is_needed(monkeypatch):
    assert accelerator.require("cpu").platform == "cpu"
    menu = "Runtime > Change runtime type > T4 GPU, .* newer jax was installed over Colab's"
    with pytest.raises(ConfigError, match=f"computes on cpu, not on a GPU: in Colab .*{menu}"):
        accelerator.require("gpu")
    with pytest.raises(ConfigError, match="v5e-1 TPU"):
        accelerator.require("tpu")
    with pytest.raises(ConfigError, match="unknown accelerator 'tpus'; known: tpu"):
        accelerator.require("tpus")
    monkeypatch.setattr(accelerator.jax, "devices", lambda *_: [T4])
    assert accelerator.require("gpu") is T4
