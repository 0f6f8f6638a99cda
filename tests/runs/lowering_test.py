"""The steps of every shipped ImageNet recipe are made for TPUs and GPUs, which are not needed here.

A kernel's code is made for the accelerator before XLA compiles anything, so a kernel that cannot
be made, or that stands outside the mesh, shows here. Blocks are all alike: one is enough.
"""

import importlib
import re
import types

import jax
import pytest
import tiny_runs

from deit_jax.distributed import sharding
from deit_jax.models import attention
from deit_jax.recipe import devices as devices_lib
from deit_jax.teacher import kinds, manifest

TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5 lite", num_cores=1)
GPU = types.SimpleNamespace(
    platform="gpu", device_kind="NVIDIA H100 80GB HBM3", compute_capability="9.0"
)
FILES = "deit deit_distilled deit3 mmpretrain teachers finetune ablations".split()
ROWS = 64


def shipped() -> list[str]:
    found = []
    for file in FILES:
        names = {}
        path = tiny_runs.ROOT / "configs" / f"{file}.py"
        exec(compile(path.read_text(), str(path), "exec"), names)
        found += [f"{file}.py:{variant}" for variant in names["VARIANTS"]]
    return found


@pytest.fixture
def lower(monkeypatch):
    """`lower(spec, device, step, *overrides)`: the program, and what it was made of."""
    monkeypatch.syspath_prepend(tiny_runs.ROOT / "benchmarks")
    program_steps = importlib.import_module("program_steps")
    mesh = sharding.make_mesh()

    def lowered(spec, device, step, *overrides):
        monkeypatch.setattr(jax, "devices", lambda *_: [device] * mesh.size)
        # cuDNN is asked for its version, which needs it; XLA's attention does not.
        others = {name: a for name, a in attention.ATTENTION.items() if name != "cudnn"}
        monkeypatch.setattr(attention, "ATTENTION", others)
        shallow = [f"train.batch_size={ROWS}", *overrides]
        if tiny_runs.load(spec).model.name.startswith("deit"):
            shallow.append("model.depth=1")
        e = program_steps.experiment(tiny_runs.load(spec, *shallow), device, mesh)
        platform = {"gpu": "cuda"}.get(device.platform, device.platform)
        return program_steps.lower(e, step, platform).as_text(), e

    return lowered


def kernels(text: str) -> list[tuple[int, ...]]:
    """Shapes of the first operand of each TPU kernel of a program."""
    pattern = r"@tpu_custom_call\(.*\) .*: \(tensor<([\dx]+)x\w+>"
    return [tuple(int(n) for n in found.split("x")) for found in re.findall(pattern, text)]


def check_kernels(text, e, step):
    """Fused attention, forward and in training backward, each device on its own rows."""
    model = e.recipe.model
    tokens = model.grid[0] * model.grid[1] + model.prefix_tokens
    rows = (ROWS if step == "train" else e.evaluation.batch_size) // e.mesh.size
    expected = (rows, tokens, 3 * model.embed_dim)
    assert model.attention == "pallas"
    found = kernels(text)
    assert found.count(expected) == (2 if step == "train" else 1), found
    assert {shape[0] for shape in found} == {rows}, "a transformer as teacher has its own"


def test_a_kernel_of_every_size_is_made_for_its_own_rows(lower):
    for spec, step in (("deit.py:ti", "train"), ("deit_distilled.py:s", "eval")):
        # A teacher's size takes long.
        text, e = lower(spec, TPU, step, "loss.distillation=none")
        check_kernels(text, e, step)


def test_a_step_is_made_for_a_gpu(lower):
    text, e = lower("deit.py:ti", GPU, "train")
    assert e.recipe.model.dtype == "bfloat16" and not kernels(text)
    assert "dot_general" in text


def test_a_step_with_stored_labels_needs_their_description_alone(lower, tmp_path):
    sizes = {"train.batch_size": ROWS, "steps_per_epoch": 5}
    about = {"digest": "t", "description": "a teacher"}
    manifest.Manifest(kinds.Hard(1000), sizes, about).write(tmp_path, {})
    text, e = lower("deit_distilled.py:ti", GPU, "train", f"teacher.labels={tmp_path}")
    assert e.teacher is None and f"tensor<{ROWS}xui16>" in text


@pytest.mark.long
@pytest.mark.parametrize("spec", shipped())
def test_every_step_of_every_recipe_is_made_for_every_accelerator(spec, lower):
    for step in ("train", "eval"):
        text, e = lower(spec, TPU, step)
        model = e.recipe.model
        if hasattr(model, "attention") and model.embed_dim == 64 * model.num_heads:
            check_kernels(text, e, step)
    lower(spec, GPU, "train")


def test_the_stand_ins_are_devices_of_the_table():
    assert devices_lib.listed(TPU).title == "TPU v5e"
    assert devices_lib.listed(GPU).title == "H100 SXM"
