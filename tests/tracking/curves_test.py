"""Curves from metrics.jsonl: what is drawn, and that nothing is printed."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from deit_jax.errors import ConfigError
from deit_jax.tracking import curves


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, 41):
            record = {"step": step, "train/loss": 7 - step / 10, "train/learning_rate": 1e-3}
            record |= {"train/loss": None} if step == 5 else {}
            file.write(json.dumps(record) + "\n")
            if step % 20 == 0:
                for kind in ("eval", "eval_ema"):
                    scores = {f"{kind}/{head}/top1": 0.3 for head in ("class", "dist", "mean")}
                    file.write(
                        json.dumps({"step": step, f"{kind}/class/loss": 3.0} | scores) + "\n"
                    )
    return folder


def drawn(monkeypatch, runs, out):
    """Panel title -> the legend's labels."""
    panels, draw = {}, curves._draw

    def spy(axes, panel, series):
        draw(axes, panel, series)
        panels[panel[0]] = {line.get_label(): line.get_xydata() for line in axes.lines}

    monkeypatch.setattr(curves, "_draw", spy)
    curves.plot_curves(runs, out)
    return panels


def test_every_head_raw_and_averaged_is_drawn(run, tmp_path, monkeypatch):
    panels = drawn(monkeypatch, {"run": run}, tmp_path / "new" / "curves.png")
    assert (tmp_path / "new" / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    heads = {f"{head} {kind}" for head in ("class", "dist", "mean") for kind in ("raw", "EMA")}
    assert set(panels["Top-1 accuracy"]) == heads
    np.testing.assert_allclose(panels["Top-1 accuracy"]["class EMA"], [[20, 30], [40, 30]])
    loss = panels["Loss"]["loss"]
    assert loss.shape == (40, 2) and np.isnan(loss[4, 1]) and not np.isnan(loss[5, 1])
    assert set(panels["Learning rate"]) == {"learning rate"}


def test_several_runs_are_told_apart(run, tmp_path, monkeypatch):
    runs = {"hard": run, "none": run / "metrics.jsonl"}
    panels = drawn(monkeypatch, runs, tmp_path / "curves.png")
    assert set(panels["Loss"]) == {"hard loss", "none loss"}


def test_a_run_that_measured_nothing_is_drawn_empty(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("")
    panels = drawn(monkeypatch, {"run": tmp_path}, tmp_path / "curves.png")
    assert all(not lines for lines in panels.values())


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        curves.plot_curves({"run": tmp_path}, tmp_path / "curves.png")
    with pytest.raises(ConfigError, match="at least one"):
        curves.plot_curves({}, tmp_path / "curves.png")


def test_no_word_of_fonts_or_caches_and_no_backend_is_chosen(run, tmp_path):
    # A home that cannot be written makes matplotlib complain and rebuild its cache.
    code = (
        "import sys; from deit_jax.tracking import curves\n"
        "curves.plot_curves({'run': sys.argv[1]}, sys.argv[2])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(run), str(tmp_path / "curves.png")],
        env={"HOME": "/proc/none", "PATH": "", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""
    assert logging.getLogger("matplotlib").level == logging.NOTSET
