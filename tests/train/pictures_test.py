"""The figures at the end of a run."""

import pytest
import tiny_runs

from deit_jax.errors import ConfigError
from deit_jax.evaluation.rows import Rows
from deit_jax.figures import AT_THE_END
from deit_jax.tracking import writers
from deit_jax.train import pictures

PNG = b"\x89PNG\r\n\x1a\n"


def test_every_figure_is_in_the_workdir_and_in_tensorboard(
    tmp_path, monkeypatch, compilation_cache, capsys
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_runs.on_one_device(monkeypatch)
    options = ("model.depth=1", *tiny_runs.NO_AUGMENTATION, compilation_cache)
    tiny_runs.train(tiny_runs.tiny("quickstart.py:plain", *options), tmp_path / "run")
    assert "not drawn" not in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for name in AT_THE_END:
        content = (tmp_path / "run" / f"{name}.png").read_bytes()
        assert content.startswith(PNG)
        (image,) = events.Images(f"figures/{name}")
        assert image.encoded_image_string == content and image.step == 3
        assert image.width > 300 and image.height > 200


def test_what_cannot_be_drawn_is_one_line(tmp_path, monkeypatch):
    """matplotlib missing, a full disk, or our own mistake: the run has done its work."""

    def broken(run):
        raise RuntimeError("a\nb")

    said = []
    monkeypatch.setattr(pictures, "FIGURES", dict.fromkeys(AT_THE_END, broken))
    with writers.MetricsWriter(tmp_path, trackers=()) as writer:
        pictures.draw(pictures.Finished(None, tmp_path, {}), 3, writer, said.append)
    assert said == [f"{name}.png not drawn: a b" for name in AT_THE_END]


def test_figures_are_chosen_by_name(tmp_path):
    config = tiny_runs.load("quickstart.py:plain", "log.figures=curves,worst")
    assert config.log.figures == ("curves", "worst")
    assert tiny_runs.load("quickstart.py:plain", "log.figures=").log.figures == ()
    with pytest.raises(ConfigError, match="unknown figure 'curve'; known: curves"):
        writers.MetricsWriter(tmp_path, figures=("curve",))
    assert set(pictures.FIGURES) == set(AT_THE_END)


def test_the_better_weights_are_shown(tmp_path):
    def rows(right):
        return Rows(*([0, 1], [0, 1], [0, int(right)], [1, 1], [1, 1]))

    import numpy as np

    both = {name: Rows(*map(np.array, rows(name == "eval_ema"))) for name in ("eval", "eval_ema")}
    found, title = pictures.Finished(None, tmp_path / "r", both).better()
    assert found is both["eval_ema"] and title == "r, EMA"
    found, title = pictures.Finished(None, tmp_path / "r", {"eval": both["eval"]}).better()
    assert title == "r"
