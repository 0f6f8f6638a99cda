"""The visual style of all figures: colors, lines, fonts, sizes, and how a figure becomes a PNG.

Colors differ in lightness, lines in dashes and markers, and everything is labeled where it is:
a figure can be read when it is printed in black and white.
"""

import contextlib
import functools
import io
import logging
import os
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from deit_jax import storage
from deit_jax.errors import ConfigError, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# One for each run, in this order; neighbors differ most in lightness.
COLORS = ("#17406d", "#e58a1f", "#a3234e", "#5fb0dc", "#1c7f5f", "#b98fd0")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, MUTED, FAINT = "#1c1c1c", "#6b6b6b", "#dcdcdc"
RIGHT, WRONG = "#1c7f5f", "#a3234e"
SOLID, DASHED = "-", (0, (3.2, 1.4))
# White to dark blue, and black to white over warm colors: each only ever darker or brighter.
COUNTS = ("#ffffff", "#d3e2f0", "#8fb8dc", "#3f7fb8", "#17406d", "#0a1f3a")
HEAT = ("#000000", "#3b0f5c", "#8c2369", "#d6483f", "#f6951f", "#fbe36b", "#ffffff")

# Points.
TITLE, TEXT, SMALL = 10.0, 8.0, 7.0
DPI = 144

# The first is matplotlib's own; the others have the signs that it lacks, where they are installed.
_FONTS = (
    "DejaVu Sans",
    *(f"Noto Sans CJK {region}" for region in ("JP", "SC", "TC", "KR")),
    *("Noto Sans", "WenQuanYi Micro Hei", "IPAexGothic", "Hiragino Sans", "PingFang SC"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"),
)
_SETTINGS = {
    "font.size": TEXT,
    # Names of classes and runs are not formulas.
    "text.parse_math": False,
    "text.color": INK,
    "axes.titlesize": TITLE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "grid.linestyle": "-",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

Function = TypeVar("Function", bound=Callable[..., Any])


def styled(function: Function) -> Function:
    """`function` drawing in this style, without a word of fonts or caches from matplotlib.

    Raises:
      ConfigError: matplotlib is missing.
    """

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        with _drawing():
            return function(*args, **kwargs)

    return draw  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    log = logging.getLogger("matplotlib")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # Of signs that no font has; `drawable` replaces names that have them.
            warnings.filterwarnings("ignore", message=".*Glyph .* missing")
            try:
                import matplotlib
            except ImportError as error:
                message = f"figures need matplotlib ({error}): pip install matplotlib"
                raise ConfigError(message) from error
            settings: dict[Any, Any] = _SETTINGS | {"font.family": list(_families())}
            with matplotlib.rc_context(settings):
                yield
    finally:
        log.setLevel(before)


@styled
def check() -> None:
    """Raises ConfigError where matplotlib is missing, before a figure is worked for."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches; in a notebook it shows itself."""
    # Not pyplot: it keeps figures alive and would change the caller's backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure._repr_png_ = functools.partial(png, figure)  # pyright: ignore
    return figure


@styled
def png(figure: "Figure") -> bytes:
    """The figure as a PNG file; the same bytes for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def save(figure: "Figure", path: str | os.PathLike | storage.Path) -> storage.Path:
    """Writes the figure as a PNG file, on this machine or in a bucket, and returns its path.

    Raises:
      OSError: it cannot be written.
    """
    file = storage.path(path)
    storage.write(file, png(figure))
    return file


def colormap(colors: Sequence[str]) -> Any:
    """A continuous scale of `COUNTS` or `HEAT`."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", list(colors))


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Inches that `text` takes at `size` points."""
    from matplotlib.text import Text

    probe = new_figure(1, 1)
    return Text(0, 0, text, size=size, weight=weight, figure=probe).get_window_extent().width / DPI


def fitted(text: str, width: float, size: float, weight: str = "normal") -> str:
    """`text`, cut in the middle until it takes at most `width` inches."""
    limit = len(text)
    while limit > 3 and text_width(shortened(text, limit), size, weight) > width:
        limit -= 1
    return shortened(text, limit)


def shortened(text: str, limit: int) -> str:
    """At most `limit` signs, cut in the middle: names often differ in their ends."""
    if len(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{text[: limit - 1 - end].rstrip()}…{text[len(text) - end :].lstrip()}"


def drawable(names: Sequence[str], kind: str = "class") -> list[str]:
    """`names` without control characters; `class k` for one that has signs without a font."""
    known = _code_points()
    found = [printable(str(name)) for name in names]
    return [n if known.issuperset(n) else f"{kind} {k}" for k, n in enumerate(found)]


@functools.cache
def _families() -> tuple[str, ...]:
    from matplotlib import font_manager

    installed = set(font_manager.fontManager.get_font_names())
    return tuple(font for font in _FONTS if font in installed)


@functools.cache
def _code_points() -> frozenset[str]:
    import matplotlib
    from matplotlib import font_manager

    files = [font_manager.findfont(family) for family in _families()]
    signs = {chr(c) for file in files for c in font_manager.get_font(file).get_charmap()}
    if matplotlib.__version_info__ < (3, 11):
        # Words that are written from right to left would come out backwards.
        signs = {sign for sign in signs if unicodedata.bidirectional(sign) not in ("R", "AL")}
    return frozenset(signs)
