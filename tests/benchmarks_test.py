"""Code of the benchmarks: worker processes, cases, results."""

import importlib
import pathlib
import sys

import pytest

from deit_jax.train.speed import workers

BENCHMARKS = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"

WORKER = """
from deit_jax.train.speed import workers

def open_case(case):
    print("output of a library")
    if case["bad"]:
        raise ValueError("does not fit")
    return {"ready_s": case["start"]}, {"double": lambda x: {"twice": 2 * x}}

workers.serve(open_case)
"""


@pytest.fixture
def load(monkeypatch):
    """A benchmark script as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def worker(**case):
    command = [sys.executable, "-c", WORKER]
    return workers.Worker(command, {"bad": False, "start": 3} | case, {})


def test_a_worker_answers_until_it_is_closed():
    opened = worker()
    assert opened.ready == {"ready_s": 3}
    assert opened.request(do="double", x=21) == {"twice": 42}
    opened.close()


def test_a_worker_that_fails_says_why():
    with pytest.raises(workers.WorkerFailed, match="ValueError: does not fit"):
        worker(bad=True)
    opened = worker()
    with pytest.raises(workers.WorkerFailed, match="halve"):
        opened.request(do="halve", x=2)
    with pytest.raises(workers.WorkerFailed, match="status 1"):
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
