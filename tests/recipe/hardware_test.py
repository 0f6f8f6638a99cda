"""Peaks by the name of the device, FLOPs of a step, and no MFU where it would be a guess."""

import types

import jax
import pytest

from deit_jax import models
from deit_jax.recipe import hardware


def device(kind, **attributes):
    return types.SimpleNamespace(device_kind=kind, **attributes)


@pytest.mark.parametrize(
    "kind, tera",
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("A100-SXM4-40GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_of_gpus(kind, tera):
    assert hardware.peak_flops(device(kind)) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "kind, cores, tera",
    [
        ("TPU v2", 1, 22.5),
        ("TPU v3", 1, 61.5),
        ("TPU v4", 2, 275.0),
        ("TPU v4", 1, 137.5),
        ("TPU v5 lite", 1, 197.0),
        ("TPU v5", 2, 459.0),
        ("TPU v6 lite", 1, 918.0),
        ("TPU7x", 1, 1153.5),
    ],
)
def test_peaks_of_tpus_go_by_the_cores_of_a_device(kind, cores, tera):
    assert hardware.peak_flops(device(kind, num_cores=cores)) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "NVIDIA GH200 480GB",
        "NVIDIA H20",
        "NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        "TPU v9",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "Tesla V100-SXM2-16GB",
    ],
)
def test_what_is_not_listed_has_no_peak(kind):
    assert hardware.peak_flops(device(kind, num_cores=1)) is None


def test_a_step_is_three_evaluations_of_two_operations_and_one_of_the_teacher():
    model = models.create_model("deit_small_patch16_224")
    teacher = models.create_model("deit_tiny_patch16_224")
    macs = model.count().macs
    assert hardware.step_flops(model, batch_size=8) == 2 * 3 * macs * 8
    # 27.6 GFLOP an image: deit_small at 224, 4.6 GMAC.
    assert 3 * 2 * macs == pytest.approx(27.6e9, rel=0.01)
    both = hardware.step_flops(model, batch_size=8, teacher=teacher)
    assert both == 2 * (3 * macs + teacher.count().macs) * 8
    # What is computed again is no work done.
    again = model.clone(remat="full")
    assert hardware.step_flops(again, batch_size=8) == hardware.step_flops(model, batch_size=8)


def test_mfu_only_where_it_is_known():
    half = models.create_model("deit_small_patch16_224", dtype="bfloat16")
    full = models.create_model("deit_small_patch16_224")
    h100, cpu = device("NVIDIA H100 80GB HBM3"), device("cpu")
    ideal = lambda *args, **kwargs: hardware.ideal_step_seconds(*args, batch_size=1024, **kwargs)
    seconds = ideal(half, devices=[h100] * 8)
    assert 1024 / seconds / 8 == pytest.approx(35_842, rel=0.01), "images/s at the peak"
    assert ideal(half, devices=[h100] * 4) == pytest.approx(2 * seconds)
    assert ideal(half, teacher=half, devices=[h100] * 8) == pytest.approx(4 / 3 * seconds)
    assert ideal(full, devices=[h100]) is None
    assert ideal(half, teacher=full, devices=[h100]) is None
    assert ideal(half, devices=[h100, device("NVIDIA H100 PCIe")]) is None
    assert ideal(half, devices=[cpu]) is None and ideal(half) is None


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    assert hardware.peak_memory_gib() is None, "the CPU backend counts none"
    counting = [
        types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n * 2**30})
        for n in (3, 5, 4)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: counting)
    assert hardware.peak_memory_gib() == 5.0
