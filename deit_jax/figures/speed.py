"""Published accuracy against measured throughput: the paper's first figure, measured here."""

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deit_jax.errors import ConfigError
from deit_jax.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_WIDTH, _HEIGHT = 6.4, 4.3
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.62, 0.75, 0.78, 0.95


class Point(NamedTuple):
    """A model: its family and name, who computed it, its measured images/s and published top-1."""

    family: str
    name: str
    by: str
    images_per_s: float
    top1: float


@style.styled
def speed(points: Sequence[Point], *, title: str, notes: Sequence[str] = ()) -> "Figure":
    """Top-1 over images/s on a logarithmic axis.

    A color and a marker for each family, whose models a line joins; dashed, with hollow markers,
    for another library (`by`) than the first point's. Each model is named once.

    Args:
      title: what it was measured on.
      notes: lines below, such as the sources.

    Raises:
      ConfigError: there are no points, or matplotlib is missing.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    if not points:
        raise ConfigError("no model with a published accuracy was measured")
    figure = style.new_figure(_WIDTH, _HEIGHT)
    across, up = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    place = (_LEFT / _WIDTH, _BOTTOM / _HEIGHT, across / _WIDTH, up / _HEIGHT)
    axes: Any = figure.add_axes(place)
    axes.set_xscale("log")
    lines = collections.defaultdict(list)
    for point in points:
        lines[point.family, point.by].append(point)
    families = list(dict.fromkeys(point.family for point in points))
    libraries = list(dict.fromkeys(point.by for point in points))
    for (family, by), of_line in lines.items():
        _draw(axes, of_line, families.index(family), hollow=by != libraries[0])
    _name(axes, points)
    axes.set_xlabel("images/s (logarithmic)")
    axes.set_ylabel("published top-1 on ImageNet, %")
    axes.grid(axis="both")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    axes.margins(x=0.12, y=0.12)
    _words(figure, title, families, libraries, notes)
    return figure


def _draw(axes: Any, points: Sequence[Point], family: int, *, hollow: bool) -> None:
    ordered = sorted(points, key=lambda point: point.images_per_s)
    color = style.COLORS[family % len(style.COLORS)]
    axes.plot(
        [point.images_per_s for point in ordered],
        [point.top1 for point in ordered],
        color=color,
        linestyle=style.DASHED if hollow else style.SOLID,
        linewidth=0.9 if hollow else 1.4,
        marker=style.MARKERS[family % len(style.MARKERS)],
        markersize=5.0,
        markeredgewidth=1.0,
        markerfacecolor="white" if hollow else color,
    )


def _name(axes: Any, points: Sequence[Point]) -> None:
    """The name of each model beside its fastest point."""
    fastest: dict[str, Point] = {}
    for point in points:
        if point.images_per_s > fastest.get(point.name, point).images_per_s - 1e-9:
            fastest[point.name] = point
    names = style.drawable(list(fastest), "model")
    for name, point in zip(names, fastest.values(), strict=True):
        axes.annotate(
            name,
            (point.images_per_s, point.top1),
            xytext=(6, 4),
            textcoords="offset points",
            size=style.SMALL,
            annotation_clip=False,
        )


def _words(
    figure: "Figure",
    title: str,
    families: Sequence[str],
    libraries: Sequence[str],
    notes: Sequence[str],
) -> None:
    """Title, what colors and dashes mean, notes."""
    from matplotlib.lines import Line2D

    room = _WIDTH - _LEFT - 0.1
    bold = style.fitted(title, room, style.TITLE, "bold")
    x, y = _LEFT / _WIDTH, 1 - 0.24 / _HEIGHT
    figure.text(x, y, bold, size=style.TITLE, weight="bold", va="center")
    keys: list[Any] = [
        (family, style.COLORS[n % len(style.COLORS)], style.MARKERS[n % len(style.MARKERS)], "-")
        for n, family in enumerate(families)
    ]
    dashes: Any = (style.SOLID, style.DASHED)
    keys += (
        [(library, style.MUTED, "", dashes[n > 0]) for n, library in enumerate(libraries)]
        if len(libraries) > 1
        else []
    )
    y = 1 - 0.52 / _HEIGHT
    for word, color, marker, dash in keys:
        ends = (x, x + 0.3 / _WIDTH)
        figure.add_artist(
            Line2D(ends, (y, y), color=color, marker=marker or None, markersize=4, linestyle=dash)
        )
        x += 0.37 / _WIDTH
        figure.text(x, y, word, size=style.SMALL, va="center")
        x += (style.text_width(word, style.SMALL) + 0.22) / _WIDTH
    for number, note in enumerate(notes):
        text = style.fitted(note, _WIDTH - 0.2, style.SMALL)
        y = (_BOTTOM - 0.58 - 0.15 * number) / _HEIGHT
        figure.text(0.1 / _WIDTH, y, text, size=style.SMALL, color=style.MUTED, va="center")
