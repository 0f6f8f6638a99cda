"""Lines with their labels at their ends."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from deit_jax.figures import style


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel.

    Attributes:
      steps, values: float [n]; NaN values are gaps.
      faint: values [n] to be drawn faintly behind it, or None.
      label: at its end.
      run: number of the run, which has the color.
      ema: dashed.
      main: stands for its run, and is drawn thick.
      marker: number of the marker.
    """

    steps: np.ndarray
    values: np.ndarray
    faint: np.ndarray | None
    label: str
    run: int
    ema: bool
    main: bool
    marker: int

    @property
    def color(self) -> str:
        return style.COLORS[self.run % len(style.COLORS)]

    @property
    def weight(self) -> str:
        return "bold" if self.main else "normal"

    @property
    def label_width(self) -> float:
        """Inches."""
        return style.text_width(self.label, style.SMALL, self.weight)

    @property
    def end(self) -> tuple[float, float] | None:
        """The last point that is a number."""
        finite = np.flatnonzero(np.isfinite(self.values))
        if not finite.size:
            return None
        return float(self.steps[finite[-1]]), float(self.values[finite[-1]])

    @property
    def marks(self) -> dict[str, Any]:
        """Markers, hollow for the EMA: they distinguish lines where colors do not."""
        return {
            "marker": style.MARKERS[self.marker % len(style.MARKERS)],
            "markersize": 3.8 if self.main else 3.2,
            "markeredgewidth": 0.9,
            "markerfacecolor": "white" if self.ema else self.color,
        }


def draw_line(axes: Any, line: Line, *, several: bool) -> None:
    """Draws `line`; `several` says that the panel has lines of several runs."""
    if line.faint is not None:
        faint = {"color": line.color, "alpha": 0.22, "linewidth": 0.5, "label": "_faint"}
        axes.plot(line.steps, line.faint, **faint)
    count = len(line.values)
    # Few in a long line, each run's at other places.
    every = (count * (2 * line.marker + line.ema) // 50, count // 5) if count > 12 else 1
    dense = count > 100 and not several
    axes.plot(
        line.steps,
        line.values,
        color=line.color,
        label=line.label,
        linestyle=style.DASHED if line.ema else style.SOLID,
        linewidth=1.5 if line.main else 0.8,
        markevery=every,
        **({} if dense else line.marks),
    )


def label_ends(axes: Any, lines: Sequence[Line], gap: float) -> None:
    """Labels at the right, each at the height of its line as far as there is room.

    `gap` is the least distance of two labels, as a share of the height of the panel.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform(line.end) if line.end else (1.0, 0.0) for line in lines]
    free = {"transform": axes.transAxes, "clip_on": False}
    for line, (x, y), height in zip(lines, ends, spread([y for _, y in ends], gap), strict=True):
        # A line that ends early is followed to the edge.
        turn = [(1.0, y)] if x > 0.9 else []
        path = np.array([(x, y), *turn, (1.045, height)])
        thin = {"color": line.color, "linewidth": 0.5, "alpha": 0.7, "label": "_leader"}
        axes.plot(path[:, 0], path[:, 1], **thin, **free)
        dot = {"color": line.color, "linestyle": "", "label": "_end"}
        axes.plot([1.06], [height], **dot, **line.marks, **free)
        axes.text(
            1.085, height, line.label, size=style.SMALL, weight=line.weight, va="center", **free
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in the order given, at least `gap` apart, moved as little as possible.

    They stay within 0..1 as long as there is room for all.
    """
    order = np.argsort(np.asarray(heights), kind="stable")
    # Blocks of neighbors that touch: (place of the lowest, members).
    blocks: list[tuple[float, int]] = []
    for index in order:
        place, count = float(heights[index]), 1
        while blocks and blocks[-1][0] + blocks[-1][1] * gap > place:
            below, members = blocks.pop()
            # The mean of the places that each of them would give the lowest.
            place = (below * members + (place - members * gap) * count) / (members + count)
            count += members
        blocks.append((place, count))
    placed = [place + k * gap for place, count in blocks for k in range(count)]
    # Down from the top, then up from the bottom, where they leave the panel.
    for k in reversed(range(len(placed))):
        placed[k] = min(placed[k], placed[k + 1] - gap if k + 1 < len(placed) else 1.0)
    for k in range(len(placed)):
        placed[k] = max(placed[k], placed[k - 1] + gap if k else 0.0)
    found = np.empty(len(placed))
    found[order] = placed
    return found.tolist()
