"""metrics.jsonl, TensorBoard and W&B: what is written, and what a restart leaves."""

import json
import logging
import math
import re
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from deit_jax.errors import ConfigError
from deit_jax.storage import append
from deit_jax.tracking import writers


def lines(folder):
    """What was written, without the time."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(line.pop("time", time.time()) - time.time()) < 600 for line in found)
    return found


def events(folder):
    # The reader works without TensorFlow, which it would import for seconds.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return read


def test_a_line_is_step_then_numbers_of_any_kind(tmp_path):
    with writers.MetricsWriter(tmp_path, trackers=()) as writer:
        writer.write(jnp.int32(3), {"b": jnp.float32(0.5), "a": np.float64(2), "c": 1})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert re.sub(r"\d{9,}\.\d+", "T", text) == (
        '{"step": 3, "time": T, "b": 0.5, "a": 2.0, "c": 1.0}\n'
    )


def test_nan_and_infinity_are_null(tmp_path):
    with writers.MetricsWriter(tmp_path, trackers=()) as writer:
        writer.write(1, {"nan": math.nan, "inf": -math.inf, "loss": 1.0})
    assert lines(tmp_path) == [{"step": 1, "nan": None, "inf": None, "loss": 1.0}]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    # os._exit runs no handlers and flushes nothing, as a kill.
    code = (
        "import sys, os; from deit_jax.tracking import writers as metrics\n"
        "w = metrics.MetricsWriter(sys.argv[1]); w.write(1, {'loss': 2.0}); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert lines(tmp_path) == [{"step": 1, "loss": 2.0}]
    assert events(tmp_path).Scalars("loss")[0].value == 2.0


@pytest.mark.parametrize("resume, kept", [(0, []), (2, [1, 2]), (9, [1, 2, 3, 4])])
def test_resume_drops_later_steps(tmp_path, resume, kept):
    with writers.MetricsWriter(tmp_path) as writer:
        for step in range(1, 5):
            writer.write(step, {"loss": float(step)})
    with writers.MetricsWriter(tmp_path, resume_step=resume) as writer:
        writer.write(resume + 1, {"loss": -1.0})
    assert [line["step"] for line in lines(tmp_path)] == [*kept, resume + 1]
    if resume:
        shown = [(e.step, e.value) for e in events(tmp_path).Scalars("loss")]
        assert shown == [*((step, float(step)) for step in kept), (resume + 1, -1.0)]


def test_a_cut_last_line_and_a_broken_one_do_not_prevent_resume(tmp_path, caplog):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo\x00s\n{"step": 3}\n{"step": 4, "l')
    with caplog.at_level(logging.WARNING):
        writers.MetricsWriter(tmp_path, resume_step=5, trackers=()).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    assert "line 2 is broken" in caplog.text and "last line is cut" in caplog.text


def test_a_full_disk_costs_whole_lines_and_is_reported(tmp_path, caplog, monkeypatch):
    writer = writers.MetricsWriter(tmp_path, trackers=())
    writer.write(1, {"loss": 1.0})
    write = append.os.write
    with monkeypatch.context() as patch:
        patch.setattr(append.os, "write", lambda fd, data: write(fd, data[:5]))
        writer.write(2, {"loss": 2.0})
    writer.write(3, {"loss": 3.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    assert "metrics of step 2 not written: [Errno 28] disk full" in caplog.text


@pytest.mark.parametrize(
    "put, name",
    [(lambda path: path.mkdir(), "metrics.jsonl"), (lambda path: path.touch(), "tensorboard")],
)
def test_what_is_in_the_way_of_the_metrics_is_named(put, name, tmp_path):
    put(tmp_path / name)
    with pytest.raises(ConfigError, match=f"metrics cannot be written in .*{name}: .*move it"):
        writers.MetricsWriter(tmp_path)


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(writers.jax, "process_index", lambda: 1)
    with writers.MetricsWriter(tmp_path / "run", trackers=("wandb",)) as writer:
        writer.write(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tracker", sorted(set(writers.TRACKERS) - {"notebook"}))
def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch, tracker):
    package = {"comet": "comet_ml"}.get(tracker, tracker)
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"log.trackers={tracker} .*: pip install {package}") as e:
        writers.MetricsWriter(tmp_path, trackers=(tracker,))
    assert "\n" not in str(e.value)


class Collector:
    """Metrics in a list of the test's."""

    def __init__(self, workdir, resume_step, config, *, collector_name: str = "c"):
        Collector.made.append((workdir, resume_step, config, collector_name))

    def write(self, step, values):
        Collector.written.append((step, values))

    def close(self):
        Collector.written.append("closed")


def test_a_tracker_is_added_by_one_class_and_one_line(tmp_path, monkeypatch):
    Collector.made, Collector.written = [], []
    monkeypatch.setitem(writers.TRACKERS, "collector", Collector)
    options = ("log.trackers=collector,tensorboard", "log.collector_name=mine")
    config = tiny_runs.load("quickstart.py:plain", *options)
    with writers.MetricsWriter(tmp_path, 3, {"seed": 0}, **config.log) as writer:
        writer.write(4, {"loss": jnp.float32(0.5)})
    assert Collector.made == [(tmp_path, 3, {"seed": 0}, "mine")]
    assert Collector.written == [(4, {"loss": 0.5}), "closed"]
    assert events(tmp_path).Scalars("loss")[0].value == 0.5


@pytest.mark.parametrize(
    "options, message",
    [
        (["log.wandb_project=p"], "unknown key config.log.wandb_project"),
        (["log.trackers=neptune"], "unknown .*'neptune'; known: .*tensorboard"),
    ],
)
def test_options_of_trackers_that_were_not_chosen_are_unknown(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_runs.load("quickstart.py:plain", *options)
    assert tiny_runs.load("quickstart.py:plain", "log.trackers=").log.trackers == ()
    chosen = tiny_runs.load("quickstart.py:plain", "log.trackers=wandb", "log.wandb_project=p")
    assert chosen.log.wandb_project == "p"


def test_importing_loads_neither_tensorflow_nor_tensorboard():
    code = (
        "import sys; from deit_jax.tracking import progress, provenance, series, writers\n"
        "bad = {'tensorflow', 'tensorboard', 'matplotlib', 'wandb', 'clu'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
