"""Shared code of the benchmarks: interleaving, summaries, worker processes."""

import importlib
import pathlib
import sys

import pytest

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
