"""What the tokens of a transformer look at in a photo."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from deit_jax.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_TILE, _GAP, _CAPTION = 1.5, 0.1, 0.2
_MARGIN, _NAME, _TOP = 0.2, 0.68, 0.97
_ROW = _TILE + _CAPTION + _GAP
# As wide as the photo and all maps of a row, as far as there are so many heads.
_MOST_HEADS = 16


@style.styled
def attention(
    photo: np.ndarray,
    maps: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    heads: np.ndarray | None = None,
    head_rows: Sequence[str] = (),
    head_title: str = "",
    title: str = "",
    subtitle: str = "",
) -> "Figure":
    """Maps over a photo: a row for each block, a column for each kind; and single heads below.

    The maps of the columns are means over the heads.

    Each map is darkest at its weakest patch and brightest at its strongest; below it are the
    strongest patch's share and the share of all patches, the rest of 1 being that of the tokens.
    Where the weakest has more than 0.8 of the strongest, 0.8 is dark.

    Args:
      photo: uint8 [h, w, 3].
      maps: [R, C, y, x], shares of the patches, 0..1.
      rows, columns: R and C names.
      heads: [S, H, y, x] of one block, or None.
      head_rows, head_title: S names, and one above them.
      title, subtitle: what the photo is, and what the model says of it.

    Raises:
      ValueError: not one name for each row or column.
      ConfigError: matplotlib is missing.
    """
    maps = np.asarray(maps)
    if (len(rows), len(columns)) != maps.shape[:2]:
        raise ValueError(f"{len(rows)} rows, {len(columns)} columns for maps {maps.shape}")
    if heads is not None and len(head_rows) != len(heads):
        raise ValueError(f"{len(head_rows)} names for heads {heads.shape}")
    left = _MARGIN + _TILE + 0.3 + _NAME
    width = left + len(columns) * (_TILE + _GAP) - _GAP + _MARGIN
    heads = None if heads is None else np.asarray(heads)[:, :_MOST_HEADS]
    side, below = _small_tiles(heads, width)
    height = _TOP + len(rows) * _ROW + below + 0.1
    figure = style.new_figure(width, height)
    _header(figure, title, subtitle)
    _photo(figure, photo)
    _grid(figure, photo, maps, (rows, columns), left)
    if heads is not None:
        y = _TOP + len(rows) * _ROW + 0.5
        _write(figure, _MARGIN, y - 0.36, head_title, weight="bold")
        _heads(figure, photo, heads, style.drawable(head_rows), y, side)
    return figure


def _header(figure: "Figure", title: str, subtitle: str) -> None:
    room = figure.get_size_inches()[0] - 2 * _MARGIN
    title = style.fitted(_one(title), room, style.TITLE, "bold")
    _write(figure, _MARGIN, 0.24, title, size=style.TITLE, weight="bold")
    subtitle = style.fitted(_one(subtitle), room, style.TEXT)
    _write(figure, _MARGIN, 0.47, subtitle, color=style.MUTED)


def _photo(figure: "Figure", photo: np.ndarray) -> None:
    """The photo, left of the first row of maps, and below it how to read them."""
    _tile(figure, (_MARGIN, _TOP, _TILE), photo, None)
    _write(figure, _MARGIN + _TILE / 2, _TOP - 0.1, "what the model saw", ha="center")
    lines = ("means over the heads; dark to bright:", "the weakest to the strongest patch")
    for number, text in enumerate(lines):
        y = _TOP + _TILE + 0.1 + 0.12 * number
        _write(figure, _MARGIN, y, text, size=style.SMALL - 1, color=style.MUTED)


def _grid(
    figure: "Figure",
    photo: np.ndarray,
    maps: np.ndarray,
    names: tuple[Sequence[str], Sequence[str]],
    left: float,
) -> None:
    """Maps [R, C, y, x], named by row and column."""
    rows, columns = map(style.drawable, names)
    for c, name in enumerate(columns):
        x = left + c * (_TILE + _GAP)
        _write(figure, x + _TILE / 2, _TOP - 0.1, name, ha="center")
        for r in range(len(rows)):
            y = _TOP + r * _ROW
            _tile(figure, (x, y, _TILE), photo, maps[r, c])
            strongest, total = 100 * maps[r, c].max(), 100 * maps[r, c].sum()
            text = f"strongest {strongest:.1f} %, all {total:.0f} %"
            _write(figure, x, y + _TILE + 0.1, text, size=style.SMALL - 1, color=style.MUTED)
    for r, name in enumerate(rows):
        _write(figure, left - 0.1, _TOP + r * _ROW + _TILE / 2, name, ha="right")


def _one(text: str) -> str:
    return style.drawable([text], "photo")[0]


def _small_tiles(heads: np.ndarray | None, width: float) -> tuple[float, float]:
    """Side of the tiles of single heads, and the height of all of them, in inches."""
    if heads is None:
        return 0.0, 0.0
    side = (width - 2 * _MARGIN - _NAME - 0.3) / heads.shape[1] - 0.06
    side = min(side, _TILE)
    return side, 0.55 + len(heads) * (side + 0.06)


def _heads(
    figure: "Figure",
    photo: np.ndarray,
    heads: np.ndarray,
    names: Sequence[str],
    top: float,
    side: float,
) -> None:
    left = _MARGIN + _NAME + 0.3
    for h in range(heads.shape[1]):
        x = left + h * (side + 0.06)
        _write(figure, x + side / 2, top - 0.1, f"head {h + 1}", ha="center", size=style.SMALL)
        for s, name in enumerate(names):
            y = top + s * (side + 0.06)
            _tile(figure, (x, y, side), photo, heads[s, h])
            if not h:
                _write(figure, left - 0.1, y + side / 2, name, ha="right", size=style.SMALL)


def _tile(
    figure: "Figure", place: tuple[float, float, float], photo: np.ndarray, shares: Any
) -> None:
    """The photo, or one map over it, in a square; `place` is left, top and side in inches."""
    width, height = figure.get_size_inches()
    x, y, side = place
    axes = figure.add_axes((x / width, 1 - (y + side) / height, side / width, side / height))
    axes.set_axis_off()
    extent = (0, photo.shape[1], photo.shape[0], 0)
    smooth = "nearest" if max(photo.shape[:2]) < 100 else "antialiased"
    if shares is None:
        axes.imshow(photo, extent=extent, interpolation=smooth)
        return
    gray = photo @ np.array([0.299, 0.587, 0.114])
    # Dimmed, so that the brightest is the map's.
    axes.imshow(gray, cmap="gray", vmin=0, vmax=480, extent=extent, interpolation=smooth)
    shares = np.asarray(shares, np.float64)
    # From the weakest to the strongest; where all are nearly equal, their noise is not enlarged.
    low, high = min(shares.min(), 0.8 * shares.max()), max(shares.max(), 1e-12)
    strength = (shares - low) / (high - low)
    heat = style.colormap(style.HEAT)(0.1 + 0.9 * strength)
    heat[..., 3] = 0.25 + 0.65 * strength
    axes.imshow(heat, extent=extent, interpolation="bicubic")


def _write(figure: "Figure", x: float, y: float, text: str, **options: Any) -> None:
    """Text at inches from the left and from the top."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, **({"va": "center", "size": style.TEXT} | options))
