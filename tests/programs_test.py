"""What is read from the programs that accelerators' compilers make."""

import dataclasses
import importlib
import pathlib
import re

import jax
import pytest
import tiny_runs

from deit_jax.distributed import sharding
from deit_jax.recipe import devices, hardware
from deit_jax.train.speed import parts as speed_parts

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """A benchmark script as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


TEXT = """\
HloModule jit_step, is_scheduled=true

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %ag = bf16[64,32]{1,0} all-gather(%x), replica_groups={{0,1},{2,3}}, dimensions={0}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
  %rs = f32[4,8]{1,0:T(8,128)} reduce-scatter(%g), replica_groups={{0,1,2,3}}, dimensions={0}
  %ars = (f32[8], bf16[16]) all-reduce-start(%a, %b), replica_groups=[1,4]<=[4]
  %ard = (f32[8], bf16[16]) all-reduce-done(%ars)
  %ags = (f32[8], f32[32], u32[], u32[]) all-gather-start(%a), replica_groups=[1,4]<=[4]
  %send = (bf16[3,8]{1,0}, u32[], token[]) send(%a, %k), frontend_attributes={\
_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %host = (f32[9], u32[], token[]) send(%a, %k), is_host_transfer=true
}
"""


def test_collectives_are_read_from_a_program(load):
    found = load("hlo").collectives(TEXT)
    assert [(c.op, c.elements, c.nbytes, c.network, c.looped) for c in found] == [
        ("all-gather", 2048, 4096, "ici", True),
        ("reduce-scatter", 128, 512, "ici", False),
        ("all-reduce", 24, 64, "ici", False),
        ("all-gather", 32, 128, "ici", False),
        ("all-reduce", 24, 48, "dcn", False),
    ]


def test_groups_of_devices_are_read_in_every_notation(load):
    groups = load("hlo")._groups
    assert groups("replica_groups={{0,1},{2,3}}, dimensions={0}") == [[0, 1], [2, 3]]
    assert groups("channel_id=1, source_target_pairs={{0,3},{1,2}}, m={}") == [[0, 3], [1, 2]]
    assert groups("replica_groups=[2,2]<=[4], x={}") == [[0, 1], [2, 3]]
    assert groups("replica_groups=[2,2]<=[2,2]T(1,0), x={}") == [[0, 2], [1, 3]]
    assert groups("replica_groups=mesh['a'=2,'b'=2] {'a'}, x={}") == [[0, 2], [1, 3]]
    half = "replica_groups=mesh['a'=4,'b'=2] {'a':(2)2,'b'}, x={}"
    assert groups(half) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_what_spans_slices_is_known_before_the_compiler_sends_it(load):
    found = load("hlo").collectives(TEXT, slice_size=2)
    assert [c.network for c in found] == ["ici", "dcn", "dcn", "dcn", "dcn"]


COSTS = """\
HloModule jit_step, is_scheduled=true

%fused (p0: bf16[128,64], p1: bf16[64,32]) -> bf16[128,32] {
  %p0 = bf16[128,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[128,32]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={op_name="\
jit(f)/jvp(VisionTransformer)/blocks_0/mlp/fc1/dot_general"}
}

%sliced (q0: f32[100,8], q1: s32[]) -> f32[1,8] {
  %q0 = f32[100,8]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  ROOT %d = f32[1,8]{1,0} dynamic-slice(%q0, %q1), dynamic_slice_sizes={1,8}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8,16]{1,0} parameter(0)
  ROOT %n = f32[8,16]{1,0} negate(%a), metadata={op_name="jit(f)/augment/while/color/neg"}
}

ENTRY %main (a: bf16[128,64]) -> bf16[128,32] {
  %a.1 = bf16[128,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b.1 = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(1)
  %t = f32[100,8]{1,0} parameter(2)
  %i = s32[] parameter(3)
  %fusion.1 = bf16[128,32]{1,0:T(8,128)(2,1)} fusion(%a.1, %b.1), kind=kOutput, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"3000"}}
  %fusion.2 = f32[1,8]{1,0} fusion(%t, %i), kind=kLoop, calls=%sliced
  %copy-start = (bf16[64,32]{1,0:S(1)}, bf16[64,32]{1,0}, u32[]{:S(2)}) copy-start(%b.1)
  %w = (s32[], f32[8]) while(%t), condition=%cond, body=%body
  %kernel.1 = bf16[128,32]{1,0} custom-call(%a.1, %b.1), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/blocks_3/attn/forward_kernel/pallas_call"}, backend_config=\
{"custom_call_config":{"body":"x","cost_estimate":{"flops":"77"}}}
  %batched = f32[4,8,16]{2,1,0} convolution(%l, %r), \
window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf
  %l = f32[4,8,5]{2,1,0} parameter(4)
  %r = f32[4,5,16]{2,1,0} parameter(5)
}
"""


def test_arithmetic_and_bytes_of_operations(load):
    found = {o.name: o for o in load("hlo_cost").operations(COSTS)}
    weights, result = 64 * 32 * 2, 128 * 32 * 2
    # What is on the chip is not read from memory, of what is sliced the rest neither.
    assert found["fusion.1"].hbm == weights + result
    assert found["fusion.1"].flops == 2 * 128 * 64 * 32 and found["fusion.1"].cycles == 3000
    assert found["fusion.2"].hbm == 4 + 2 * 8 * 4
    assert found["copy-start"].hbm == weights
    assert found["n"].hbm == 2 * 8 * 16 * 4
    assert found["kernel.1"].flops == 77 and found["kernel.1"].hbm == weights + result
    assert found["kernel.1"].kernel == (("bf16", (128, 64)), ("bf16", (64, 32)))
    # A batch of products is written as a window over the batch.
    assert found["batched"].flops == 2 * 4 * 8 * 5 * 16
    assert "w" not in found


def test_what_parts_cost(load):
    targets, parts = load("program_targets"), load("program_parts")
    chip = devices.DEVICES["v5e"]
    target = targets.Target("v5e-1", "tpu", chip, (), 1.5)
    operations = load("hlo_cost").operations(COSTS)
    weighed = parts.weigh(operations, target, 2, lambda operation: 6000)
    # Cycles at 1.5 GHz, of two images.
    assert weighed["mlp fc1"]["estimate_us"] == 1.0 and weighed["attention"]["estimate_us"] == 2.0
    assert weighed["attention"]["floor_us"] == pytest.approx(0.5e6 * 12288 / 819e9, rel=1e-3)
    assert weighed["augment color"]["operations"] == 1
    total = {key: sum(c[key] for n, c in weighed.items() if n != "all") for key in weighed["all"]}
    assert weighed["all"] == pytest.approx(total, rel=1e-2)
    assert list(weighed)[:2] == ["all", "attention"]
    beside = parts.table(weighed, {"heads": {"estimate_us": 4.0}})
    assert re.search(r"heads +4.00 -> 0.00", beside) and "0.00 -> 1.00" in beside


def test_a_kernel_counts_with_its_schedule(load, monkeypatch, tmp_path):
    schedule, compiled = load("kernel_schedule"), []

    def alone(case):
        compiled.append(case)
        return {"bundles": 100, "grid_steps": 32}

    monkeypatch.setattr(schedule, "CACHE", tmp_path / "kernels.json")
    monkeypatch.setattr(schedule, "_compiled_alone", alone)
    (kernel,) = (o for o in load("hlo_cost").operations(COSTS) if o.kernel)
    # Of the same kernel on the same chip once, however large the machine.
    cycles = [load("programs").kernel_cycles(name, kernel) for name in ("v5e-4", "2xv5e-16")]
    assert cycles == [3200, 3200] and len(compiled) == 1
    assert compiled[0]["kernel"] == "forward_kernel"


@pytest.fixture
def exchange(load, monkeypatch):
    module = load("program_exchange")
    monkeypatch.setattr(module, "SMALL", 256)
    return module


def small_experiment(load):
    """On eight fake devices, fsdp over two."""
    sizes = ("model.embed_dim=64", "model.depth=1", "mesh.fsdp=2", "augment.mixup=0.8")
    sizes += ("train.batch_size=32",)
    resolved = tiny_runs.tiny("deit.py:ti", *tiny_runs.NO_AUGMENTATION, *sizes)
    mesh = sharding.make_mesh(**resolved.mesh)
    return load("program_steps").experiment(resolved, jax.devices()[0], mesh)


def compiled(load, e):
    program = load("program_steps").compiled(e, "train")
    assert program.memory["argument"] > 0
    return program.text


def test_a_step_gathers_only_what_the_design_says(load, exchange):
    e = small_experiment(load)
    text = compiled(load, e)
    found = exchange.exchanged(e, exchange.hlo.collectives(text))
    assert found["not_in_the_design"] == []
    assert {"gradients", "parameters", "crops", "mix"} <= found["bytes_per_step"]["ici"].keys()
    images = exchange.hlo.Collective("all-gather", (("f32", (32, 32, 32, 3)),), "ici", False)
    assert exchange.part_of_design(e, images) is None
    parts = {"qkv", "projection", "attention", "mlp fc1", "mlp fc2", "heads", "patch embedding"}
    parts |= {"norms", "optimizer", "loss", "augment crop", "augment mix", "collectives"}
    operations = load("hlo_cost").operations(text)
    part_of = lambda operation: speed_parts.part_of(operation.opcode, operation.scope)
    assert parts <= {part_of(operation) for operation in operations}
    counted = sum(o.flops for o in operations if not part_of(o).startswith("augment"))
    model = e.recipe.model
    formula = hardware.step_flops(model, batch_size=32) / e.mesh.size
    # Nothing wants the gradient of the pixels, which the formula counts with the others.
    patches = model.grid[0] * model.grid[1] * model.patch_size**2 * 3 * model.embed_dim
    assert counted == pytest.approx(formula - 2 * patches * 32 / e.mesh.size, rel=0.001)


@pytest.mark.long
def test_images_that_are_gathered_are_found(load, exchange):
    e = small_experiment(load)

    def gathers(key, batch):
        whole = jax.sharding.NamedSharding(e.mesh, jax.sharding.PartitionSpec())
        augmented = e.augment_fn(key, batch)
        image = jax.lax.with_sharding_constraint(augmented["image"], whole)
        return augmented | {"image": image * image.max()}

    planted = dataclasses.replace(e, augment_fn=gathers)
    found = exchange.hlo.collectives(compiled(load, planted))
    (strange, *_) = exchange.exchanged(e, found)["not_in_the_design"]
    assert "(32, 32, 32, 3)" in strange
