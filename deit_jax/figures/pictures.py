"""Sheets of pictures: the most wrong ones of an evaluation, and what augmentation makes of some."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deit_jax.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_TILE, _GAP, _LINE = 1.45, 0.16, 0.145
# Pixels, of the sheets that show every pixel.
_MARGIN, _SPACE = 24, 6


@style.styled
def worst(
    images: Sequence[np.ndarray],
    labels: Sequence[str],
    predicted: Sequence[str],
    label_shares: Sequence[float],
    predicted_shares: Sequence[float],
    *,
    notes: Sequence[str] = (),
    title: str = "Most wrong pictures",
    columns: int = 6,
) -> "Figure":
    """Pictures with what they are and what they were taken for, in the order given.

    Args:
      images: uint8 [h, w, 3] each, of any size.
      labels, predicted: names of the true and of the predicted class.
      label_shares, predicted_shares: their probabilities, 0..1.
      notes: a further line for each, such as the name of the file; none for no such line.
      title: what was evaluated.
      columns: pictures in a row, at most.

    Raises:
      ValueError: not one of each for each picture.
      ConfigError: matplotlib is missing.
    """
    labels, predicted = style.drawable(labels, "name"), style.drawable(predicted, "name")
    notes = style.drawable(notes, "picture") if notes else [""] * len(images)
    pictures = list(
        zip(images, labels, label_shares, predicted, predicted_shares, notes, strict=True)
    )
    columns = max(min(columns, len(pictures)), 1)
    rows = -(-len(pictures) // columns)
    row_height = _TILE + (3 if any(notes) else 2) * _LINE + 0.25
    width = max(columns * (_TILE + _GAP) + _GAP, 3.4)
    height = 0.72 + rows * row_height
    figure = style.new_figure(width, height)
    title = style.fitted(title, width - 2 * _GAP, style.TITLE, "bold")
    below = (
        "true class, → predicted class, and their probabilities" if pictures else "none is wrong"
    )
    x = _GAP / width
    figure.text(x, 1 - 0.24 / height, title, size=style.TITLE, weight="bold", va="center")
    figure.text(x, 1 - 0.46 / height, below, size=style.SMALL, color=style.MUTED, va="center")
    for number, (image, name, share, guess, guess_share, note) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, bottom = _GAP + column * (_TILE + _GAP), height - 0.66 - _TILE - row * row_height
        place = (left / width, bottom / height, _TILE / width, _TILE / height)
        draw_picture(figure.add_axes(place), image)
        named = ((name, share), (guess, guess_share))
        _captions(figure, left, bottom - 0.11, named, note)
    return figure


def draw_picture(axes: Any, image: np.ndarray) -> None:
    """The whole picture in a square, small ones enlarged with sharp pixels."""
    image = np.asarray(image)
    smooth = "nearest" if max(image.shape[:2]) < 100 else "antialiased"
    axes.imshow(image, interpolation=smooth)
    axes.set(xticks=[], yticks=[])
    axes.set_anchor("S")
    axes.spines[:].set(visible=True, color=style.FAINT, linewidth=0.6)


def _captions(
    figure: "Figure", left: float, top: float, named: Sequence[tuple[str, float]], note: str
) -> None:
    """`tabby 2.1 %`, `→ tiger cat 71 %` and the note, each cut to what fits."""
    width, height = figure.get_size_inches()
    size = style.SMALL
    kinds = (("", style.RIGHT), ("→ ", style.WRONG))
    for line, ((name, share), (arrow, color)) in enumerate(zip(named, kinds, strict=True)):
        percent = f" {100 * share:{'.0f' if share >= 0.0995 else '.1f'}} %"
        x, y = left / width, (top - line * _LINE) / height
        name = style.fitted(name, _TILE - style.text_width(arrow + percent, size), size, "bold")
        bold = {"size": size, "weight": "bold", "va": "center"}
        shown = figure.text(x, y, arrow + name, color=color, **bold)
        end = shown.get_window_extent().x1 / figure.dpi / width
        figure.text(end, y, percent, size=size, va="center")
    note = style.fitted(note, _TILE, size - 1)
    y = (top - 2 * _LINE) / height
    figure.text(left / width, y, note, size=size - 1, color=style.MUTED, va="center")


@style.styled
def augmentations(
    columns: Sequence[np.ndarray], titles: Sequence[str], names: Sequence[str], *, title: str = ""
) -> "Figure":
    """A sheet of pictures pixel for pixel: a row for each image, its name at the left.

    Images of less than 96 pixels are enlarged by a whole factor, each pixel a square. The first
    column, the original, stands apart from the others.

    Args:
      columns: uint8 [n, h, w, 3] each, all of one shape.
      titles: one for each column.
      names: n names.
      title: of the sheet.

    Raises:
      ValueError: not one title or name for each column or row.
      ConfigError: matplotlib is missing.
    """
    pictures = np.stack([np.asarray(column) for column in columns])
    if (len(titles), len(names)) != pictures.shape[:2]:
        raise ValueError(f"{len(titles)} titles, {len(names)} names for {pictures.shape} pictures")
    zoom = max(1, 96 // pictures.shape[2])
    pictures = pictures.repeat(zoom, axis=2).repeat(zoom, axis=3)
    _, rows, tall, wide, _ = pictures.shape
    names = [style.shortened(n, 28) for n in style.drawable(names)]
    text = max(style.text_width(name, style.SMALL) for name in names)
    left = _MARGIN + round(text * style.DPI) + 12
    top = 44 + (40 if title else 0)
    xs = [left + i * (wide + _SPACE) + (3 * _SPACE if i else 0) for i in range(len(titles))]
    ys = [top + j * (tall + _SPACE) for j in range(rows)]
    width, height = xs[-1] + wide + _MARGIN, ys[-1] + tall + _MARGIN
    sheet = np.full((height, width, 3), 255, np.uint8)
    for column, x in zip(pictures, xs, strict=True):
        for picture, y in zip(column, ys, strict=True):
            sheet[y : y + tall, x : x + wide] = picture
    figure = style.new_figure(width / style.DPI, height / style.DPI)
    figure.figimage(sheet, resize=False)

    def write(x: float, y: float, text: str, **options: Any) -> None:
        figure.text(x / width, 1 - y / height, text, va="center", **options)

    for x, word in zip(xs, style.drawable(titles, "column"), strict=True):
        write(x + wide / 2, top - 20, word, ha="center", size=style.SMALL, color=style.MUTED)
    for y, name in zip(ys, names, strict=True):
        write(_MARGIN, y + tall / 2, name, size=style.SMALL)
    if title:
        write(_MARGIN, 34, title, size=style.TITLE, weight="bold")
    return figure
