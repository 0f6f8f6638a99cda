"""Loss, learning rate and accuracy of one or several runs as a PNG, from metrics.jsonl."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from deit_jax import storage
from deit_jax.errors import ConfigError
from deit_jax.tracking.writers import FILE_NAME, read_jsonl

# Title, unit of the y axis, pattern of the metrics in the panel.
_PANELS = (
    ("Loss", "nats", re.compile(r"^train/(?P<name>loss|label_loss|distillation_loss)$")),
    ("Evaluation loss", "nats", re.compile(r"^(?P<kind>eval|eval_ema)/(?P<name>\w+)/loss$")),
    ("Learning rate", "", re.compile(r"^train/(?P<name>learning_rate)$")),
    ("Top-1 accuracy", "%", re.compile(r"^(?P<kind>eval|eval_ema)/(?P<name>\w+)/top1$")),
)
_KINDS = {"eval": "raw", "eval_ema": "EMA"}

Series = dict[str, tuple[list[int], list[float]]]


def plot_curves(
    runs: Mapping[str, str | os.PathLike | storage.Path], out_png: str | os.PathLike | storage.Path
) -> storage.Path:
    """Draws the curves of `runs` (label -> workdir, or a metrics.jsonl) into `out_png`.

    Panels: training loss and its terms, evaluation loss, learning rate, and top-1 of each
    head output, raw weights and EMA. NaN values are gaps.

    Raises:
      ConfigError: there are no runs, or matplotlib is missing.
      FileNotFoundError: a workdir without metrics.jsonl.
    """
    if not runs:
        raise ConfigError("no runs to plot; name at least one label and workdir")
    series = {label: read_series(workdir) for label, workdir in runs.items()}
    with _quiet_matplotlib():
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            message = f"curves need matplotlib ({error}): pip install matplotlib"
            raise ConfigError(message) from error
        # Not pyplot: it keeps figures alive and would change the caller's backend.
        figure = Figure(figsize=(12, 8), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            _draw(axes, panel, series)
        out = storage.path(out_png)
        with storage.local_output(out) as file:
            figure.savefig(file, dpi=100)
    return out


def read_series(workdir: str | os.PathLike | storage.Path) -> Series:
    """Name -> (steps, values) of a workdir or a metrics.jsonl; null becomes NaN.

    Raises:
      FileNotFoundError: there is no metrics.jsonl.
    """
    path = storage.path(workdir)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a run writes it into its workdir")
    series: Series = {}
    for record in read_jsonl(file):
        step = record.pop("step")
        record.pop("time", None)
        for name, value in record.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(float("nan") if value is None else float(value))
    return series


def _draw(axes: Any, panel: tuple, series: Mapping[str, Series]) -> None:
    title, unit, pattern = panel
    scale = 100.0 if unit == "%" else 1.0
    for run, metrics in series.items():
        for name, (steps, values) in metrics.items():
            if not (match := pattern.match(name)):
                continue
            kind = match.groupdict().get("kind")
            which_run = run if len(series) > 1 else ""
            words = [which_run, match["name"].replace("_", " "), _KINDS.get(kind, "")]
            axes.plot(
                steps,
                [scale * value for value in values],
                label=" ".join(filter(None, words)),
                linestyle="--" if kind == "eval_ema" else "-",
                marker="." if len(steps) <= 50 else None,
                linewidth=1.2,
            )
    axes.set_title(f"{title} ({unit})" if unit else title)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    else:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)


@contextlib.contextmanager
def _quiet_matplotlib() -> Iterator[None]:
    """Silences messages about building a font cache or an unwritable home folder."""
    log = logging.getLogger("matplotlib")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
