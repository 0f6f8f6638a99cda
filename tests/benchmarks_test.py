"""Shared code of the benchmarks: interleaving, summaries, worker processes."""

import dataclasses
import importlib
import pathlib
import sys

import jax
import pytest
import tiny_runs

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"

WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import common

def open_case(case):
    print("output of a library")
    if case["bad"]:
        raise ValueError("does not fit")
    return {"ready_s": case["start"]}, {"double": lambda x: {"twice": 2 * x}}

common.serve(open_case)
"""


@pytest.fixture
def load(monkeypatch):
    """A benchmark script as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def worker(common, **case):
    command = [sys.executable, "-c", WORKER, str(BENCHMARKS)]
    return common.Worker(command, {"bad": False, "start": 3} | case, {})


def test_cases_are_interleaved(load):
    calls = []

    def case(name):
        return lambda: calls.append(name) or len(calls)

    rounds = load("common").interleave({"a": case("a"), "b": case("b")}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert rounds == {"a": [1, 3], "b": [2, 4]}


def test_a_summary_has_median_and_spread(load):
    result = load("common").summary([4.0, 1.0, 2.0])
    assert (result["median"], result["least"], result["most"]) == (2, 1, 4)
    assert result["spread_percent"] == 150
    assert result["rounds"] == [4, 1, 2]


def test_a_worker_answers_until_it_is_closed(load):
    opened = worker(load("common"))
    assert opened.ready == {"ready_s": 3}
    assert opened.request(do="double", x=21) == {"twice": 42}
    opened.close()


def test_a_worker_that_fails_says_why(load):
    common = load("common")
    with pytest.raises(common.WorkerFailed, match="ValueError: does not fit"):
        worker(common, bad=True)
    opened = worker(common)
    with pytest.raises(common.WorkerFailed, match="halve"):
        opened.request(do="halve", x=2)
    with pytest.raises(common.WorkerFailed, match="status 1"):
        opened.request(do="double", x=2)
    opened.close()


def test_every_case_is_measured_without_and_with_ema(load, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--cases=ti:224:256,b:384:64"])
    train_step = load("train_step")
    flags = train_step.parse_flags()
    cases = train_step.read_cases(flags)
    found = [(c["size"], c["image_size"], c["batch_size"], c["ema"]) for c in cases]
    assert found == [
        ("ti", 224, 256, False),
        ("ti", 224, 256, True),
        ("b", 384, 64, False),
        ("b", 384, 64, True),
    ]
    assert set(train_step.worker_commands(flags, cases[0])) == {"ours xla", "ours cudnn"}
    flags.timm_python = sys.executable
    assert "timm" in train_step.worker_commands(flags, cases[0])


def test_utilization_and_memory_of_an_implementation(load):
    train_step = load("train_step")
    memory = {"peak_gib": 3.0, "program_gib": 2.0, "state_gib": 1.0}
    ready = {"loss": 7.0, "peak_flops": 1e12}
    result = train_step.summarize(
        [(0.5, 4e11), (0.5, 4e11)], {"batch_size": 64}, ready, memory, 1e11
    )
    assert result["images_per_s"]["median"] == 128
    assert result["mib_per_image"] == 32
    assert result["share_of_peak"] == 0.2
    assert result["share_of_matmul"] == 0.5


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


@pytest.fixture
def programs(load, monkeypatch):
    module = load("programs")
    monkeypatch.setattr(module, "SMALL", 256)
    return module


def small_experiment(programs):
    """On eight fake devices, fsdp over two."""
    sizes = ("model.embed_dim=64", "model.depth=1", "mesh.fsdp=2", "augment.mixup=0.8")
    sizes += ("train.batch_size=32",)
    resolved = tiny_runs.tiny("deit.py:ti", *tiny_runs.NO_AUGMENTATION, *sizes)
    return programs.experiment(resolved, jax.devices())


def exchanged(programs, e):
    program = programs.compile_step(e)
    assert program.memory["argument"] > 0
    return programs.exchanged(e, programs.hlo.collectives(program.text))


def test_a_step_gathers_only_what_the_design_says(programs):
    e = small_experiment(programs)
    found = exchanged(programs, e)
    assert found["not_in_the_design"] == []
    assert {"gradients", "parameters", "canvases", "mix"} <= found["bytes_per_step"]["ici"].keys()
    images = programs.hlo.Collective("all-gather", (("f32", (32, 32, 32, 3)),), "ici", False)
    assert programs.part_of_design(e, images) is None


@pytest.mark.long
def test_images_that_are_gathered_are_found(programs):
    e = small_experiment(programs)

    def gathers(key, batch):
        whole = jax.sharding.NamedSharding(e.mesh, jax.sharding.PartitionSpec())
        augmented = e.augment_fn(key, batch)
        image = jax.lax.with_sharding_constraint(augmented["image"], whole)
        return augmented | {"image": image * image.max()}

    planted = dataclasses.replace(e, augment_fn=gathers)
    (strange, *_) = exchanged(programs, planted)["not_in_the_design"]
    assert "(32, 32, 32, 3)" in strange
