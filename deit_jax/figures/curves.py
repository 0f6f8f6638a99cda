"""Loss, learning rate and accuracy of one or several runs."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deit_jax.errors import ConfigError
from deit_jax.figures import style
from deit_jax.figures.lines import Line, draw_line, label_ends

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Name of a metric -> (steps, values); `tracking.read_series` reads it.
Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]

# Inches: of a panel, and around it.
_WIDTH, _HEIGHT, _LEFT, _LABEL_GAP, _MARGIN = 3.0, 2.1, 0.62, 0.28, 0.15
_TOP, _TITLE, _BOTTOM = 0.45, 0.32, 0.48
_LINE = style.SMALL * 1.28 / 72
# With more points than these the training loss is drawn as its running mean, over a faint line.
_MANY = 200


@dataclasses.dataclass(frozen=True)
class _Panel:
    title: str
    unit: str
    pattern: re.Pattern
    # Of several names the first that a run has stands for it among other runs.
    first: tuple[str, ...] = ()
    noisy: bool = False


_PANELS = (
    _Panel(
        "Top-1 accuracy",
        "%",
        re.compile(r"(?P<kind>eval|eval_ema)/(?P<name>class|dist|mean)/top1"),
        ("mean", "class"),
    ),
    _Panel(
        "Training loss",
        "nats",
        re.compile(r"train/(?P<name>loss|label_loss|distillation_loss)"),
        ("loss",),
        noisy=True,
    ),
    _Panel(
        "Evaluation loss",
        "nats",
        re.compile(r"(?P<kind>eval|eval_ema)/(?P<name>class|dist|mean)/loss"),
        ("mean", "class"),
    ),
    _Panel("Learning rate", "", re.compile(r"train/(?P<name>learning_rate)"), ("learning_rate",)),
)


@style.styled
def curves(runs: Mapping[str, Series]) -> "Figure":
    """The curves of `runs`, label -> `Series`.

    One color for each run, the EMA dashed, labels with the last value at the ends of the lines.
    Panels, as far as there is something to draw: top-1 accuracy, training loss, evaluation loss,
    learning rate. A single run has a line for each head and each term of the loss, several runs
    one each: their loss, and the mean of both heads where there are two. NaN values are gaps.

    Raises:
      ConfigError: there are no runs, or matplotlib is missing.
    """
    if not runs:
        raise ConfigError("no runs to plot; name at least one label and workdir")
    drawn = [(panel, lines) for panel in _PANELS if (lines := _lines(panel, runs))]
    drawn = drawn or [(_PANELS[1], [])]
    return _figure(drawn, list(runs))


def _lines(panel: _Panel, runs: Mapping[str, Series]) -> list[Line]:
    found = []
    labels = style.drawable(list(runs), "run")
    for number, (run, series) in enumerate(zip(labels, runs.values(), strict=True)):
        matches = {name: match for name in series if (match := panel.pattern.fullmatch(name))}
        names = list(dict.fromkeys(match["name"] for match in matches.values()))
        main = next((name for name in panel.first if name in names), "")
        # Without a teacher there is one term, which is the loss.
        alone = len(runs) > 1 or set(names) == {"loss", "label_loss"}
        for metric, match in matches.items():
            name, ema = match["name"], match.groupdict().get("kind") == "eval_ema"
            if alone and name != main:
                continue
            label = style.shortened(run, 24) if len(runs) > 1 else name.replace("_", " ")
            found.append(
                _line(
                    *series[metric],
                    panel=panel,
                    label=f"{label} EMA" if ema else label,
                    run=number,
                    ema=ema,
                    main=name == main,
                    marker=number if len(runs) > 1 else names.index(name),
                )
            )
    return found


def _line(
    steps: Sequence[int], values: Sequence[float], *, panel: _Panel, label: str, **options: Any
) -> Line:
    """The line with its label, which ends with the last value that is a number."""
    drawn = np.asarray(values, np.float64) * (100.0 if panel.unit == "%" else 1.0)
    faint = None
    if panel.noisy and len(drawn) > _MANY:
        drawn, faint = _running_mean(drawn, len(drawn) // 50), drawn
    finite = drawn[np.isfinite(drawn)]
    form = {"%": ".1f", "nats": "#.3g"}.get(panel.unit, ".3g")
    end = f"{finite[-1]:{form}}" if finite.size else "not finite"
    return Line(
        steps=np.asarray(steps), values=drawn, faint=faint, label=f"{label} {end}", **options
    )


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the finite values in a window around each; NaN stays NaN."""
    finite, kernel = np.isfinite(values), np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite, kernel, "same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _figure(drawn: Sequence[tuple[_Panel, list[Line]]], runs: Sequence[str]) -> "Figure":
    """Panels in two columns, each with room for its labels at the right."""
    columns, rows = min(len(drawn), 2), math.ceil(len(drawn) / 2)
    room = [
        max([line.label_width for _, lines in drawn[column::2] for line in lines], default=0.2)
        for column in range(columns)
    ]
    # The same in all panels.
    span = (
        0,
        max((step for _, lines in drawn for line in lines for step in line.steps), default=1),
    )
    height = max(_HEIGHT, _LINE * max(len(lines) for _, lines in drawn))
    width = sum(_LEFT + _WIDTH + _LABEL_GAP + space for space in room) + _MARGIN
    total = _TOP + rows * (height + _TITLE + _BOTTOM)
    figure = style.new_figure(width, total)
    for number, (panel, lines) in enumerate(drawn):
        row, column = divmod(number, 2)
        left = _LEFT + column * (_LEFT + _WIDTH + _LABEL_GAP + room[0])
        top = total - _TOP - row * (height + _TITLE + _BOTTOM) - _TITLE
        place = (left / width, (top - height) / total, _WIDTH / width, height / total)
        _draw(figure.add_axes(place), panel, lines, span, _LINE / height)
    _heading(figure, [line for _, lines in drawn for line in lines], runs)
    return figure


def _heading(figure: "Figure", lines: Sequence[Line], runs: Sequence[str]) -> None:
    """The name of a single run, and what the kinds of lines mean, as far as they occur."""
    from matplotlib.lines import Line2D

    width, height = figure.get_size_inches()
    y = 1 - 0.28 / height
    one = style.drawable(runs, "run")[0]
    name = style.shortened(one, 60) if len(runs) == 1 else f"{len(runs)} runs"
    figure.text(_LEFT / width, y, name, size=style.TITLE + 1, weight="bold", va="center")
    kinds = [("EMA", style.DASHED), ("raw weights", style.SOLID)]
    x = 1 - _MARGIN / width
    for word, dashes in kinds if any(line.ema for line in lines) else []:
        x -= style.text_width(word, style.TEXT) / width
        figure.text(x, y, word, size=style.TEXT, color=style.MUTED, va="center")
        ends = (x - 0.45 / width, x - 0.09 / width)
        stroke = Line2D(ends, (y, y), color=style.MUTED, linestyle=dashes, linewidth=1.4)
        figure.add_artist(stroke)
        x -= 0.7 / width


def _draw(
    axes: Any, panel: _Panel, lines: Sequence[Line], span: tuple[float, float], gap: float
) -> None:
    """One panel; `span` are its steps, `gap` the distance of labels as a share of its height."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(f"{panel.title} ({panel.unit})" if panel.unit else panel.title)
    axes.set_xlabel("step")
    if not lines:
        axes.set(xticks=[], yticks=[])
        text = {"ha": "center", "color": style.MUTED, "transform": axes.transAxes}
        axes.text(0.5, 0.5, "nothing measured yet", **text)
        return
    for axis, form in ((axes.xaxis, _steps), (axes.yaxis, lambda value, _: f"{value:.6g}")):
        whole = axis is axes.xaxis
        axis.set_major_locator(MaxNLocator(5, integer=whole, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(form))
    axes.grid(axis="y")
    several = len({line.run for line in lines}) > 1
    for line in lines:
        draw_line(axes, line, several=several)
    low, high = span
    margin = 0.02 * (high - low or 1)
    axes.set_xlim(low - margin, high + margin)
    axes.margins(y=0.06)
    axes.autoscale_view(scalex=False)
    label_ends(axes, lines, gap)


def _steps(value: float, _: Any) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else f"{value:g}"
