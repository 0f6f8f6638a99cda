"""Curves: what is drawn, in which colors, and that labels do not lie over each other."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from deit_jax import figures
from deit_jax.errors import ConfigError
from deit_jax.figures import lines, style
from deit_jax.tracking import series


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


def panels(figure):
    """Title -> label -> line, of the lines that show a metric."""
    return {
        axes.get_title(loc="left"): {
            line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")
        }
        for axes in figure.axes
    }


def test_every_head_raw_and_averaged_is_drawn(run):
    drawn = panels(figures.curves({"run": series.read_series(run)}))
    top1 = drawn["Top-1 accuracy (%)"]
    assert set(top1) == {f"{h}{k} 30.0" for h in ("class", "dist", "mean") for k in ("", " EMA")}
    np.testing.assert_allclose(top1["class EMA 30.0"].get_xydata(), [[20, 30], [40, 30]])
    assert {label: line.is_dashed() for label, line in top1.items()} == {
        x: "EMA" in x for x in top1
    }
    assert len({line.get_color() for line in top1.values()}) == 1
    assert len({line.get_marker() for line in top1.values()}) == 3, "heads, without color"
    loss = drawn["Training loss (nats)"]["loss 3.00"].get_xydata()
    assert loss.shape == (40, 2) and np.isnan(loss[4, 1]) and not np.isnan(loss[5, 1])
    assert set(drawn["Learning rate"]) == {"learning rate 0.001"}


def test_each_of_several_runs_has_a_color_and_one_line_a_kind(run):
    one = series.read_series(run)
    drawn = panels(figures.curves({f"run_{k}": one for k in range(6)}))
    colors = {label: line.get_color() for label, line in drawn["Training loss (nats)"].items()}
    assert set(colors) == {f"run_{k} 3.00" for k in range(6)}
    assert len(set(colors.values())) == 6
    top1 = drawn["Top-1 accuracy (%)"]
    assert len(top1) == 12, "raw and EMA of the mean of both heads"
    assert top1["run_3 30.0"].get_color() == top1["run_3 EMA 30.0"].get_color()
    # Equal lines have equal ends; their labels do not.
    axes = next(a for a in drawn["Learning rate"].values()).axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)
    figure = axes.figure.bbox
    assert all(box.x1 <= figure.x1 and box.y0 >= figure.y0 for box in boxes)


def test_a_long_training_loss_is_its_running_mean_over_what_was_logged():
    values = np.where(np.arange(500) % 2, 1.0, 3.0)
    values[100] = np.nan
    drawn = figures.curves({"run": {"train/loss": (np.arange(500), values)}})
    (line,) = panels(drawn)["Training loss (nats)"].values()
    assert np.isnan(line.get_ydata()[100])
    np.testing.assert_allclose(np.delete(line.get_ydata(), 100)[10:-10], 2.0, atol=0.15)
    faint = next(x for x in drawn.axes[0].lines if x.get_label() == "_faint")
    np.testing.assert_array_equal(faint.get_ydata(), values)


def test_labels_are_spread_as_little_as_needed():
    assert lines.spread([0.2, 0.8], 0.1) == [0.2, 0.8]
    np.testing.assert_allclose(lines.spread([0.5, 0.5, 0.5], 0.1), [0.4, 0.5, 0.6])
    np.testing.assert_allclose(lines.spread([0.0, 0.01, 0.9, 1.0], 0.2), [0, 0.2, 0.8, 1.0])
    wishes = np.random.default_rng(0).uniform(0, 1, 15)
    found = np.array(lines.spread(wishes, 0.06))
    assert (np.argsort(found) == np.argsort(wishes)).all()
    assert np.diff(np.sort(found)).min() > 0.06 - 1e-9 and found.min() >= 0 and found.max() <= 1


def test_colors_are_told_apart_in_black_and_white():
    from matplotlib.colors import to_rgb

    gray = [np.dot([0.299, 0.587, 0.114], to_rgb(color)) for color in style.COLORS]
    assert all(abs(a - b) > 0.1 for a, b in zip(gray, gray[1:], strict=False))
    for scale, sign in ((style.COUNTS, -1), (style.HEAT, 1)):
        shades = style.colormap(scale)(np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]
        assert (sign * np.diff(shades) > 0).all()


def test_a_run_that_measured_nothing_is_drawn_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert (
        panels(figures.curves({"run": series.read_series(tmp_path)}))
        == {"Training loss (nats)": {}}
        or figures.curves({"run": {}}).axes[0].texts[0].get_text() == "nothing measured yet"
    )
    figures.png(figures.curves({"run": {"train/loss": ([1, 2], [np.nan, np.nan])}}))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        series.read_series(tmp_path)
    with pytest.raises(ConfigError, match="at least one"):
        figures.curves({})


def test_no_word_of_fonts_or_caches_and_no_backend_is_chosen(run, tmp_path):
    # A home that cannot be written makes matplotlib complain and rebuild its cache.
    code = (
        "import sys; from deit_jax import figures; from deit_jax.tracking import series\n"
        "drawn = figures.curves({'\\u732b $x^2': series.read_series(sys.argv[1])})\n"
        "figures.save(drawn, sys.argv[2])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    png = tmp_path / "new" / "curves.png"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(run), str(png)],
        env={"HOME": "/proc/none", "PATH": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert logging.getLogger("matplotlib").level == logging.NOTSET


def test_without_matplotlib_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install matplotlib"):
        figures.curves({"run": {"train/loss": ([1], [2.0])}})
