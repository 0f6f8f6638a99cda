"""Measuring programs: what is tried, in which order, what is said of memory and of each part."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest
import tiny_runs

from deit_jax import cli, figures, models
from deit_jax.errors import ConfigError
from deit_jax.figures.speed import Point
from deit_jax.pretrained import hub
from deit_jax.train.speed import by_part, measure, parts, programs, published, rounds, timm_cases

TINY = f"--config={tiny_runs.ROOT / 'configs/deit.py'}:ti,tiny"
FAST = ("--rounds=2", "--seconds=0.01")
PLAIN = tuple(f"--config.{option}" for option in tiny_runs.NO_AUGMENTATION)
PROTOCOL = measure.Protocol(rounds=2, seconds=0.001)


def test_cases_are_interleaved():
    calls = []

    def case(name):
        return lambda: calls.append(name) or len(calls)

    found = rounds.interleave({"a": case("a"), "b": case("b")}, 2)
    assert calls == ["a", "b", "a", "b"]
    assert found == {"a": [1, 3], "b": [2, 4]}


def test_a_summary_has_median_quartiles_and_spread():
    result = rounds.summary([4.0, 1.0, 2.0])
    assert (result["median"], result["least"], result["most"]) == (2, 1, 4)
    assert result["quartiles"] == [1.5, 3]
    assert result["spread_percent"] == 150
    assert result["rounds"] == [4, 1, 2]
    assert rounds.summary([3.0])["quartiles"] == [3, 3]


def test_every_call_is_waited_for():
    """Of the calls of a round the last, and of single ones each."""
    started, waited = [], []

    class Out:
        def block_until_ready(self):
            waited.append(len(started))

    def call():
        started.append(1)
        return Out()

    found = measure.timed_calls(call, 30)
    assert waited == [30, *range(31, 51)]
    assert len(found.latencies) == 20 and found.seconds >= 0
    assert measure.Protocol(seconds=1).calls(0.3) == 3
    assert measure.Protocol(seconds=1).calls(9.0) == 1


class Fake:
    """A program that fits up to 8, cannot have 3 and waits for nothing."""

    kind = "inference"

    def __init__(self, subject, batch_size):
        if batch_size == 3:
            raise ConfigError("an even batch\nis needed")
        if batch_size > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB\nmore")
        self.subject, self.batch_size, self.compile_s = subject, batch_size, 0.5

    def call(self):
        return jnp.zeros(())


class Label(str):
    """A subject that is a name alone."""

    @property
    def label(self):
        return str(self)


def test_what_does_not_fit_is_one_line_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setitem(programs.PROGRAMS, "inference", Fake)
    lines = []
    cases = measure.open_cases(
        [Label("a"), Label("b")], ["inference"], lambda *_: [3, 16, 4, 64], PROTOCOL, lines.append
    )
    assert [case.name for case in cases] == ["a inference at 4", "b inference at 4"]
    assert lines[:3] == [
        "a inference at 3: left out: an even batch; is needed",
        "a inference at 4: compiled in 0.5 s",
        "a inference at 16: out of memory, larger batches are left out: RESOURCE_EXHAUSTED: 9 GiB",
    ]
    assert len(lines) == 6


def test_another_failure_keeps_its_traceback(monkeypatch):
    def broken(subject, batch_size):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setitem(programs.PROGRAMS, "inference", broken)
    with pytest.raises(jax.errors.JaxRuntimeError):
        measure.open_cases([Label("a")], ["inference"], lambda *_: [4], PROTOCOL, print)


def test_a_case_that_does_not_fit_beside_the_others_is_left_out():
    class One:
        def __init__(self, name, fails):
            self.name, self.fails = name, fails

        def round(self):
            if self.fails:
                raise MemoryError("full")
            return measure.Round(0.5, [0.5])

        def result(self, found):
            return measure.summarize(found, 8)["images_per_s"]["rounds"]

    lines = []
    assert measure.measure([One("a", True), One("b", False)], PROTOCOL, lines.append) == [[16, 16]]
    assert lines == ["a: out of memory beside the others: measure it alone"]


def test_memory_is_counted_only_where_the_peak_is_the_programs_own():
    def stats(use, peak):
        return {"bytes_in_use": use, "peak_bytes_in_use": peak}

    count = programs._counted_bytes
    assert count([stats(100, 120)], [stats(110, 150)], 40) == 90
    assert count([stats(100, 150)], [stats(110, 150)], 40) is None
    assert count([None], [None], 40) is None


def test_a_program_that_this_machine_cannot_hold_is_not_started(monkeypatch):
    monkeypatch.setattr(programs, "_free_bytes", lambda: 2**30)
    programs._check_host_memory(2**30)
    with pytest.raises(programs.OutOfMemory, match="needs 4 GiB by the compiler's plan, and 1 are"):
        programs._check_host_memory(2**32)


TEXT = """\
HloModule jit_step

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p), metadata={op_name="jit(f)/blocks_0/attn/qkv/neg"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %fusion.1 = f32[8]{0} fusion(%a), kind=kLoop, calls=%fused
  %ar = f32[8]{0} all-reduce-start(%fusion.1), metadata={op_name="jit(f)/loss/sum"}
  ROOT %w = (f32[8]{0}, s32[]) while(%ar), body=%b, metadata={op_name="jit(f)/loss/while"}
}
"""


def test_operations_have_the_scope_of_what_made_them():
    found = parts.operations(TEXT)
    assert found["fusion.1"] == ("fusion", "jit(f)/blocks_0/attn/qkv/neg")
    assert parts.part_of(*found["fusion.1"]) == "qkv"
    assert parts.part_of(*found["ar"]) == "collectives"
    assert found["w"][0] == "while"


def test_each_name_is_measured_with_its_own_model(monkeypatch, capsys):
    def sizes(subject, batch_size):
        recipe = subject.own.recipe
        raise ConfigError(f"{subject.name} {recipe.model.count().parameters} {recipe.image_size}")

    monkeypatch.setitem(programs.PROGRAMS, "inference", sizes)
    names = ("deit_tiny_patch16_224", "regnety_002")
    options = ("--what=inference", "--batch-sizes=2", "--image-size=64", *PLAIN)
    assert cli.main(["benchmark", *names, *options]) == 2
    captured = capsys.readouterr()
    assert captured.err == "deit-jax benchmark: nothing was measured: see the lines above\n"
    assert [line.partition("left out: ")[2] for line in captured.out.splitlines()] == [
        f"{name} {models.create_model(name, image_size=64).count().parameters} 64" for name in names
    ]


def test_a_tiny_recipe_is_measured_and_traced(tmp_path, capsys):
    output, profile = tmp_path / "found.json", tmp_path / "profile"
    arguments = (TINY, *FAST, *PLAIN, "--batch-sizes=4", f"--profile={profile}")
    assert cli.main(["benchmark", *arguments, f"--output={output}"]) == 0
    found = json.loads(output.read_text())
    assert [(r["kind"], r["batch_size"]) for r in found["results"]] == [
        ("inference", 4),
        ("training", 4),
    ]
    for result in found["results"]:
        assert len(result["images_per_s"]["rounds"]) == 2
        low, high = result["latency_ms"]["quartiles"]
        assert 0 < low <= result["latency_ms"]["median"] <= high
        assert result["memory_by"] == "compiled program" and result["memory_gib"] > 0
        assert (result["devices"], result["registered"], result["dtype"]) == (1, False, "float32")
    inference, training = (result["gflop_per_image"] for result in found["results"])
    assert training == pytest.approx(3 * inference, rel=1e-3)
    assert found["hardware"]["device"] and found["versions"]["packages"]["jax"]
    assert found["settings"]["rounds"] == 2
    traced = found["profiles"]["deit:ti,tiny training at 4"]
    parts_found = {"qkv", "attention", "mlp fc1", "optimizer", "augment crop"}
    assert parts_found <= traced.keys()
    assert sum(part["share"] for part in traced.values()) == pytest.approx(1, abs=0.01)
    out = capsys.readouterr().out
    assert "deit:ti,tiny training at 4, traced in" in out and "us an image" in out


def test_a_trace_without_the_programs_operations_has_no_parts(tmp_path):
    by_part.record(lambda: jnp.ones(3) + 1, tmp_path / "other")
    assert by_part.read(tmp_path / "other", TEXT, 1) == {}


def result(name, rate, by="deit_jax", **changed):
    """A result of a published model."""
    size = 384 if name.endswith("384") else 224
    fixed = {"model": name, "name": name, "by": by, "kind": "inference", "registered": True}
    return fixed | {"image_size": [size] * 2, "images_per_s": {"median": rate}} | changed


def test_the_fastest_batch_of_each_published_model_is_drawn():
    small, base = "deit_small_patch16_224", "deit_base_distilled_patch16_384"
    results = [
        result(small, 5.0),
        result(small, 7.0),
        result(small, 9.0, kind="training"),
        result(small, 6.0, by="timm"),
        result(base, 2.0),
        result("deit_tiny_patch16_224", 8.0, image_size=[384, 384]),
        result("regnety_002", 8.0),
        result("deit_base_patch16_224", 8.0, registered=False, model="mine"),
    ]
    points, left_out = published.points(results)
    assert points == [
        Point("DeiT", "deit_small", "deit_jax", 7.0, 79.854),
        Point("DeiT", "deit_small", "timm", 6.0, 79.854),
        Point("DeiT, distilled", "deit_base_distilled_384", "deit_jax", 2.0, 85.224),
    ]
    assert left_out == [
        "deit_tiny_patch16_224 is not in the figure: published at 224 pixels",
        "regnety_002 is not in the figure: no published accuracy",
        "mine is not in the figure: no published accuracy",
    ]
    assert published.sources([small, base]) == ["top-1: README_deit.md of facebookresearch/deit"]
    assert all(entry.source for entry in hub.PUBLISHED.values())


def test_the_figure_tells_libraries_and_families_apart():
    points = [
        Point("DeiT", "deit_small", "deit_jax", 700.0, 79.9),
        Point("DeiT", "deit_tiny", "deit_jax", 2000.0, 72.2),
        Point("DeiT", "deit_small", "timm", 600.0, 79.9),
        Point("RegNetY", "regnety_160", "deit_jax", 300.0, 82.9),
    ]
    figure = figures.speed(points, title="on a chip", notes=["top-1: a page"])
    (axes,) = figure.axes
    of_deit, of_timm, of_regnet = axes.lines
    assert list(of_deit.get_xdata()) == [700, 2000] and list(of_deit.get_ydata()) == [79.9, 72.2]
    assert of_deit.get_color() == of_timm.get_color() != of_regnet.get_color()
    assert of_timm.get_markerfacecolor() == "white" and of_timm.get_linestyle() == "--"
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.texts] == ["deit_small", "deit_tiny", "regnety_160"]
    words = [text.get_text() for text in figure.texts]
    assert words == ["on a chip", "DeiT", "RegNetY", "deit_jax", "timm", "top-1: a page"]
    assert figures.png(figure).startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="published accuracy"):
        figures.speed([], title="")


FAKE_TORCH = """\
import contextlib
from types import SimpleNamespace as Space
__version__ = "9"
cuda, float32 = Space(is_available=lambda: False), "f32"
device, inference_mode = str, contextlib.nullcontext
compile = lambda model, mode, dynamic: model
def randn(shape, device, dtype):
    if shape[0] > 4:
        raise RuntimeError("CUDA out of memory\\nmore")
    return shape
"""
FAKE_TIMM = """\
__version__ = "8"
class Model:
    eval = lambda self: self
    to = lambda self, *_: self
    __call__ = lambda self, image: None
create_model = lambda name, pretrained, img_size: Model()
"""


def test_timm_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    for name, text in (("torch", FAKE_TORCH), ("timm", FAKE_TIMM)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    class Ours:
        def __init__(self, batch_size):
            one = Label("deit_tiny_patch16_224")
            one.name, one.mesh = one.label, jax.make_mesh((1,), "x", devices=jax.devices()[:1])
            model = type("Model", (), {"image_size": (224, 224), "dtype": "float32"})
            recipe = type("Recipe", (), {"model": model})
            self.program = Fake(one, 2)
            self.program.batch_size = batch_size
            self.program.experiment = type("Experiment", (), {"recipe": recipe})
            self.name = f"deit_tiny inference at {batch_size}"
            self.facts = result(one.name, 0) | {"batch_size": batch_size, "dtype": "float32"}
            self.facts["gflop_per_image"] = 1

    lines = []
    worker = timm_cases.start(sys.executable, "default", "cpu")
    try:
        ours = [Ours(4), Ours(8)]
        (case,) = timm_cases.open_cases(worker, ours, PROTOCOL, "default", lines.append)
        (found,) = measure.measure([case], PROTOCOL, print)
    finally:
        worker.close()
    assert lines == ["timm's deit_tiny inference at 8: out of memory: CUDA out of memory"]
    assert found["by"] == "timm" and found["images_per_s"]["median"] > 0
    assert found["versions"] == {"torch": "9", "timm": "8"}
    with pytest.raises(ConfigError, match="torch computes on cpu, jax on gpu"):
        timm_cases.start(sys.executable, "default", "gpu")


def test_a_python_without_timm_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for python, words in ((sys.executable, "No module|no torch"), ("/no/python", "No such file")):
        with pytest.raises(ConfigError, match=f"timm cannot be measured with .*({words})"):
            timm_cases.start(python, "none", "cpu")


def test_without_matplotlib_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["benchmark", TINY, "--plot=figure.png"]) == 2
    assert "figures need matplotlib" in capsys.readouterr().err
