"""What a data set is: photos of each class, how many there are, and what cannot be read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deit_jax.figures import style
from deit_jax.figures.pictures import draw_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_TILE, _GAP, _BAR, _LINE, _MARGIN = 0.62, 0.07, 1.5, 0.17, 0.2
_MOST_LINES = 10


@style.styled
def photos(
    pictures: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    counts: np.ndarray,
    *,
    notes: Sequence[str] = (),
    title: str = "",
) -> "Figure":
    """A row for each class: its name, a bar of its photos, and some of them.

    Args:
      pictures: for each of K classes some photos, uint8 [h, w, 3] each, of any size.
      names: of the classes.
      counts: int [K, 2], photos for training and for validation.
      notes: lines below, such as files that cannot be read.
      title: what they are.

    Raises:
      ValueError: not one of each for each class.
      ConfigError: matplotlib is missing.
    """
    counts = np.asarray(counts)
    rows = list(zip(pictures, style.drawable(names), counts, strict=True))
    short = [style.shortened(name, 28) for _, name, _ in rows]
    left = _MARGIN + max((style.text_width(name, style.TEXT) for name in short), default=0) + 0.12
    tiles = left + _BAR + 0.75
    columns = max((len(of_class) for of_class in pictures), default=0)
    width = max(tiles + columns * (_TILE + _GAP) + _MARGIN, 4.5)
    notes = _fitted(notes, width - 2 * _MARGIN)
    height = 0.78 + len(rows) * (_TILE + _GAP) + (len(notes) * _LINE + 0.2 if notes else 0)
    figure = style.new_figure(width, height)
    write = _writer(figure)
    title = style.fitted(title, width - 2 * _MARGIN, style.TITLE, "bold")
    write(_MARGIN, 0.24, title, size=style.TITLE, weight="bold")
    train, validation = counts.sum(axis=0)
    below = f"{train:,} photos for training (dark) and {validation:,} for validation (light)"
    write(_MARGIN, 0.46, below, size=style.SMALL, color=style.MUTED)
    top = 0.66
    for number, (of_class, _, (train, validation)) in enumerate(rows):
        y = top + number * (_TILE + _GAP)
        write(_MARGIN, y + _TILE / 2, short[number], size=style.TEXT)
        scale = _BAR / max(counts.sum(axis=1).max(), 1)
        _bar(figure, left, y, train * scale, style.COLORS[0])
        _bar(figure, left + train * scale, y, validation * scale, style.COLORS[3])
        end = left + (train + validation) * scale + 0.06
        write(end, y + _TILE / 2, f"{train:,} + {validation:,}", size=style.SMALL)
        for column, picture in enumerate(of_class):
            x = tiles + column * (_TILE + _GAP)
            place = (x / width, 1 - (y + _TILE) / height, _TILE / width, _TILE / height)
            draw_picture(figure.add_axes(place), picture)
    for number, note in enumerate(notes):
        y = top + len(rows) * (_TILE + _GAP) + 0.14 + number * _LINE
        write(_MARGIN, y, note, size=style.SMALL, color=style.WRONG)
    return figure


def _writer(figure: "Figure") -> Any:
    """`write(x, y, text)` at inches from the left and from the top."""
    width, height = figure.get_size_inches()

    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(x / width, 1 - y / height, text, va="center", **options)

    return write


def _bar(figure: "Figure", x: float, y: float, length: float, color: str) -> None:
    from matplotlib.patches import Rectangle

    width, height = figure.get_size_inches()
    tall = 0.2
    corner = x / width, 1 - (y + (_TILE + tall) / 2) / height
    figure.add_artist(Rectangle(corner, length / width, tall / height, color=color, linewidth=0))


def _fitted(notes: Sequence[str], width: float) -> list[str]:
    """What there is room for."""
    shown = [style.fitted(note, width, style.SMALL) for note in notes[:_MOST_LINES]]
    more = len(notes) - len(shown)
    return [*shown, f"... and {more:,} more"] if more else shown
