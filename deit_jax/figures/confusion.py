"""Which classes are taken for which."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deit_jax.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Up to as many classes numbers are written, and names are.
_NUMBERS, _NAMES = 20, 60
# With more classes than these, the pairs most often confused are listed too.
_PAIRS_FROM, _PAIRS = 10, 15
# Cells along a side of the picture of very many classes.
_CELLS = 250


@style.styled
def confusion(counts: np.ndarray, names: Sequence[str], *, title: str = "") -> "Figure":
    """A confusion matrix.

    Few classes are shown with their numbers, many as a picture in which no cell is lost, and
    beside it the pairs that are most often confused. The shade is the share of the row.

    Args:
      counts: int [K, K], images of class i (row) that were predicted as class j (column).
      names: K names of the classes.
      title: what was evaluated; the accuracy is added.

    Raises:
      ValueError: the numbers of classes differ.
      ConfigError: matplotlib is missing.
    """
    counts = np.asarray(counts)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"counts are {counts.shape} for {len(names)} names")
    names = style.drawable(names)
    short = [style.shortened(name, 26) for name in names]
    with_names = len(names) <= _NAMES
    room = max(style.text_width(name, _size(len(names))) for name in short) + 0.12
    left = 0.35 + (room if with_names else 0.35)
    side = float(np.clip(0.42 * len(names), 2.0, 5.6))
    below = (0.3 if _flat(short, side) else room) if with_names else 0.35
    pairs = _pairs(counts, names) if len(names) > _PAIRS_FROM else []
    words = max((style.text_width(text, style.TEXT) for text, _ in pairs), default=0.0)
    pair_width = words + 1.7 if pairs else 0.0
    top = 0.72 if title else 0.5
    total, right = counts.sum(), np.trace(counts)
    accuracy = f"{100 * right / max(total, 1):.1f} % of {total:,} images are right"
    width = max(left + side + 0.3 + pair_width, style.text_width(accuracy, style.TEXT) + 0.5)
    title = style.fitted(title, width - 0.4, style.TITLE, "bold")
    height = top + side + below + 0.4
    figure = style.new_figure(width, height)
    x = 0.2 / width
    figure.text(x, 1 - 0.24 / height, title, size=style.TITLE, weight="bold", va="center")
    y = 1 - (top - 0.24) / height
    figure.text(x, y, accuracy, size=style.TEXT, color=style.MUTED, va="center")
    axes = figure.add_axes((left / width, (below + 0.4) / height, side / width, side / height))
    _matrix(axes, counts, short if with_names else [], _flat(short, side))
    if pairs:
        box = (
            (left + side + 0.3 + words) / width,
            (below + 0.4) / height,
            1.2 / width,
            side / height,
        )
        _bars(figure.add_axes(box), pairs)
    return figure


def _size(count: int) -> float:
    return style.TEXT if count <= _NUMBERS else max(4.5, style.TEXT * 5.6 * 72 / count / 10)


def _flat(names: Sequence[str], side: float) -> bool:
    """Whether names fit side by side below their columns."""
    return max(map(len, names)) * style.TEXT * 0.62 / 72 < side / len(names)


def _matrix(axes: Any, counts: np.ndarray, names: Sequence[str], flat: bool) -> None:
    images = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(images, 1)
    # A single wrong image of fifty stays visible.
    shade = np.sqrt(_largest(shares, _CELLS))
    extent = (-0.5, len(counts) - 0.5, len(counts) - 0.5, -0.5)
    options = {"cmap": style.colormap(style.COUNTS), "vmin": 0, "vmax": 1, "extent": extent}
    axes.imshow(shade, interpolation="nearest", aspect="auto", **options)
    axes.set_xlabel("predicted", labelpad=4)
    axes.set_ylabel("true", labelpad=4)
    axes.spines[:].set_visible(True)
    axes.tick_params(length=0)
    if names:
        size = _size(len(names))
        axes.set_xticks(range(len(names)), names, size=size, rotation=0 if flat else 90)
        axes.set_yticks(range(len(names)), names, size=size)
        axes.tick_params(labelcolor=style.INK)
    if len(counts) <= _NUMBERS:
        for i, j in np.argwhere(counts > 0):
            color = "white" if shade[i, j] > 0.62 else style.INK
            axes.text(
                j, i, f"{counts[i, j]:,}", ha="center", va="center", color=color, size=style.SMALL
            )
        for k in range(len(counts) - 1):
            axes.axhline(k + 0.5, color=style.FAINT, linewidth=0.5)
            axes.axvline(k + 0.5, color=style.FAINT, linewidth=0.5)


def _largest(shares: np.ndarray, cells: int) -> np.ndarray:
    """At most `cells` on a side, each the largest share of those that it stands for."""
    starts = np.unique(
        np.linspace(0, len(shares), min(cells, len(shares)), endpoint=False, dtype=int)
    )
    return np.maximum.reduceat(np.maximum.reduceat(shares, starts, axis=0), starts, axis=1)


def _pairs(counts: np.ndarray, names: Sequence[str]) -> list[tuple[str, int]]:
    """(`true → predicted`, images) of the pairs most often confused, most first."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    best = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    cells = [(int(i), int(j)) for i, j in zip(*np.unravel_index(best, wrong.shape), strict=True)]
    short = [style.shortened(name, 24) for name in names]
    return [(f"{short[i]} → {short[j]}", int(wrong[i, j])) for i, j in cells if wrong[i, j]]


def _bars(axes: Any, pairs: Sequence[tuple[str, int]]) -> None:
    places = range(len(pairs))
    axes.barh(places, [count for _, count in pairs], height=0.62, color=style.COLORS[0])
    axes.set_ylim(max(len(pairs), 8) - 0.4, -0.6)
    axes.set_yticks(places, [text for text, _ in pairs], size=style.TEXT, color=style.INK)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.set_title("most often confused", size=style.TEXT, loc="left")
    for place, (_, count) in enumerate(pairs):
        axes.annotate(
            f"{count:,}",
            (count, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=style.SMALL,
        )
