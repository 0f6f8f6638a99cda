"""Curves that are drawn anew in their place while a notebook trains."""

import sys
import types

import pytest

from deit_jax.errors import ConfigError
from deit_jax.tracking import live, writers


@pytest.fixture
def notebook(monkeypatch):
    """A stand-in for a notebook's kernel; what it was told to show is in the list."""
    shown = []

    def display(figure, *, display_id):
        assert display_id is True
        shown.append(("new", figure))
        return types.SimpleNamespace(update=lambda figure: shown.append(("update", figure)))

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython, ipython.version_info = lambda: shell, (9, 0)
    ipython.display = types.SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return shown


def drawn(figure):
    return {tuple(line.get_xdata()) for axes in figure.axes for line in axes.lines}


def write(folder, steps, resume=0):
    with writers.MetricsWriter(folder, resume, trackers=("notebook",)) as writer:
        for step in steps:
            writer.write(step, {"train/loss": 1.0 / step, "eval/class/top1": 0.5})


def test_one_picture_that_grows(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_LEAST_SECONDS", 0.0)
    monkeypatch.setattr(live, "_SHARE", 0.0)
    write(tmp_path, (1, 2, 3))
    assert [kind for kind, _ in notebook] == ["new", "update", "update", "update"]
    assert (1, 2, 3) in drawn(notebook[-1][1])


def test_drawing_does_not_take_the_time_of_training(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_LEAST_SECONDS", 3600.0)
    write(tmp_path, range(1, 100))
    assert [kind for kind, _ in notebook] == ["new", "update"], "the first, and the end"
    assert tuple(range(1, 100)) in drawn(notebook[-1][1])


def test_a_resumed_run_begins_with_what_was_before(notebook, tmp_path):
    write(tmp_path, (1, 2, 3))
    write(tmp_path, (3, 4), resume=2)
    assert (1, 2, 3, 4) in drawn(notebook[-1][1])


def test_elsewhere_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="log.trackers=notebook draws in a notebook, and this"):
        writers.MetricsWriter(tmp_path, trackers=("notebook",))
