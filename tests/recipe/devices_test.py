"""A recipe on accelerators that are not here: what is chosen, whether it fits, hours."""

import re
import types

import jax
import pytest

from deit_jax import cli
from deit_jax.errors import ConfigError
from deit_jax.recipe import costs, devices, fit, suitability
from deit_jax.recipe.readings import READINGS
from deit_jax.recipe.recipe import make_recipe
from deit_jax.train import schema

SIZES = {"records": 10_000, "num_classes": 10}


def make(device, *overrides, count=1, spec="deit:ti"):
    """A recipe for an entry of the table, or for a device as jax has it."""
    device = devices.find_device(device) if isinstance(device, str) else device
    config = schema.load(spec, ["model.depth=3", "input.canvas=224", *overrides])
    return make_recipe(config, device=device, device_count=count, **SIZES)


def memory_of(recipe):
    return costs.step_memory(recipe).total


def test_every_device_of_the_table_is_found_and_makes_sense():
    for name, device in devices.DEVICES.items():
        assert devices.find_device(name.upper()) is device
        assert (device.platform == "gpu") == bool(device.compute_capability)
        assert 0.4 * device.memory < device.usable_bytes / 1e9 <= device.memory
        assert device.peak_flops("float32") <= max(device.peaks.values()) * 1e12
    with pytest.raises(ConfigError, match="unknown device 'h10'; known: h100"):
        devices.find_device("h10")
    assert {reading.device for reading in READINGS} <= set(devices.DEVICES)


def test_a_device_of_jax_is_recognized():
    t4 = types.SimpleNamespace(device_kind="Tesla T4", platform="gpu")
    assert devices.listed(t4) is devices.DEVICES["t4"]
    core = types.SimpleNamespace(device_kind="TPU v3", platform="tpu", num_cores=1)
    assert devices.listed(core).usable_bytes == 16e9
    assert devices.listed(jax.devices()[0]) is None


@pytest.mark.parametrize(
    "name, dtype, attention",
    [
        ("t4", "float32", "xla"),
        ("v100", "float32", "xla"),
        ("a100", "bfloat16", "cudnn"),
        ("v5e", "bfloat16", "pallas"),
    ],
)
def test_what_is_chosen(name, dtype, attention):
    recipe = make(name)
    assert recipe.model.dtype == dtype
    chosen = suitability.describe(recipe)["chosen"]
    assert chosen.startswith(f"dtype {dtype} (auto), attention {attention} (auto)")
    assert ("float16, with a scaled loss, is faster" in chosen) == (dtype == "float32")


def test_a_choice_that_the_device_does_not_have():
    with pytest.raises(ConfigError, match="config.model.attention='cudnn' needs .*T4"):
        make("t4", "model.attention=cudnn", "model.dtype=float16")
    recipe = make("h100", "model.attention=cudnn")
    assert "attention cudnn, " not in (chosen := suitability.describe(recipe)["chosen"])
    assert chosen == "dtype bfloat16 (auto), attention cudnn"
    assert "no bfloat16 units" in suitability.describe(make("t4", "model.dtype=bfloat16"))["chosen"]


def test_what_does_not_fit_comes_with_numbers_that_do(monkeypatch):
    """Every number that is said to fit does, made into a recipe; and there is no larger batch."""
    monkeypatch.delenv(devices.MEMORY_SHARE, raising=False)
    recipe = make("t4", "train.batch_size=4096", count=2)
    available = fit.available_bytes(recipe.device)
    assert available == 12e9 < memory_of(recipe)
    text = suitability.describe(recipe)["fits"]
    assert text.startswith("perhaps not: ") and "75% of its 16 GB" in text
    good, _, bad = text.partition("each of these fits: ")[2].partition("; not enough by itself: ")
    changes = {text: True for text in good.split("), ")} | {
        text: False for text in bad.split("), ")
    }
    assert len(changes) == 5
    for change, fits in changes.items():
        key, value, said = re.match(r"config\.(\S+)=(\S+) \(now .*; (\S+) GiB", change).groups()
        changed = make("t4", "train.batch_size=4096", f"{key}={value}", count=2)
        assert (memory_of(changed) <= available) == fits, change
        assert f"{memory_of(changed) / 2**30:.1f}" == said, change
        if key == "train.batch_size":
            larger = make("t4", f"{key}={int(value) + 4}", count=2)
            assert memory_of(larger) > available
    monkeypatch.setenv(devices.MEMORY_SHARE, "0.9")
    assert fit.available_bytes(recipe.device) == pytest.approx(0.9 * 16e9)


def test_where_nothing_is_enough_all_is_said_together():
    text = fit.remedies(make("t4"), 1.0)
    assert text.startswith("not enough even together: config.model.dtype=float16 (now float32)")
    assert "remat=full" in text and "accum_steps=1024" in text


def test_the_memory_of_a_device_of_jax_is_its_own():
    device = types.SimpleNamespace(
        device_kind="Tesla T4", platform="gpu", memory_stats=lambda: {"bytes_limit": 123}
    )
    assert fit.available_bytes(device) == 123
    device.memory_stats = lambda: None
    assert fit.available_bytes(device) == 12e9
    assert fit.available_bytes(jax.devices()[0]) is None


def test_hours_say_where_they_are_from():
    whole = make("v5e", "model.depth=12", count=4, spec="deit:s")
    lines = list(suitability.describe(whole).values())[-2:]
    images = 9 * 1024
    macs = 3 * whole.model.count().macs * images
    floor, estimate = (float(re.search(r"[\d.]{3,}", line)[0]) for line in lines)
    assert floor == pytest.approx(2 * macs / 4 / 197e12 / 3600, rel=0.05)
    assert estimate == pytest.approx(images / 4 * 947e-6 / 3600, rel=0.05)
    assert "arithmetic alone" in lines[0] and "not a reading" in lines[1]
    # Others' numbers are of a whole plain model in half precision.
    for other in (make("v5e"), make("v5e", "model.depth=12", "model.dtype=float32")):
        assert "images/s" not in str(suitability.describe(other))


def test_the_command(capsys):
    arguments = ["explain", "--config=deit:ti", "--records=9999", "--classes=9"]
    assert cli.main([*arguments, "--device=t4", "--config.model.depth=1"]) == 0
    out = capsys.readouterr().out
    assert "parameters, float32" in out and "\ndevice\n  device          T4: " in out
    assert cli.main([*arguments, "--device=t5"]) == 2
    assert "unknown device 't5'; known: " in capsys.readouterr().err
