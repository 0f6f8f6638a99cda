"""Draws the data flow of a training step: docs/figures/data_flow_{light,dark}.svg.

Run as `python docs/figures/data_flow.py`; with `--png=FOLDER` also as PNG, to look at.
"""

import argparse
import pathlib

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Role -> (fill, edge); and colors of text, arrows and panels.
THEMES = {
    "light": {
        "text": "#1f2328",
        "muted": "#59636e",
        "arrow": "#59636e",
        "panel": ("#f6f8fa", "#d1d9e0"),
        "host": ("#ffffff", "#8c959f"),
        "augment": ("#ddf4ff", "#218bff"),
        "teacher": ("#fff1cc", "#bf8700"),
        "student": ("#dafbe1", "#2da44e"),
        "update": ("#fbefff", "#a475f9"),
    },
    "dark": {
        "text": "#f0f6fc",
        "muted": "#9198a1",
        "arrow": "#9198a1",
        "panel": ("#151b23", "#3d444d"),
        "host": ("#212830", "#656c76"),
        "augment": ("#0c2d5a", "#4493f8"),
        "teacher": ("#3d2b05", "#d29922"),
        "student": ("#0f3019", "#3fb950"),
        "update": ("#2b1b4d", "#ab7df8"),
    },
}


class Drawing:
    """A figure of 100 x 50 units, in one theme."""

    def __init__(self, theme: dict):
        self.theme = theme
        self.figure = Figure(figsize=(11, 5.5))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, 100), ylim=(0, 50))
        self.axes.axis("off")

    def rectangle(self, x: float, y: float, width: float, height: float, role: str) -> None:
        fill, edge = self.theme[role]
        style = "round,pad=0,rounding_size=0.9"
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, style, fc=fill, ec=edge, lw=1.3, zorder=1)
        )

    def text(self, x: float, y: float, text: str, *, size: float = 10.5, **options) -> None:
        options = {"color": self.theme["text"], "ha": "center", "va": "center"} | options
        self.axes.text(x, y, text, size=size, zorder=3, linespacing=1.25, **options)

    def panel(self, x: float, y: float, width: float, height: float, title: str) -> None:
        self.rectangle(x, y, width, height, "panel")
        self.text(
            x + 1.5, y + height - 2.7, title, size=11.5, ha="left", va="baseline", weight="bold"
        )

    def box(
        self, x: float, y: float, width: float, height: float, role: str, title: str, note: str = ""
    ) -> None:
        """A box whose first line is its title, with a smaller note below."""
        self.rectangle(x, y, width, height, role)
        lines = note.count("\n") + 1 if note else 0
        middle = y + height / 2
        self.text(x + width / 2, middle + 1.0 * lines, title)
        if note:
            muted = self.theme["muted"]
            self.text(x + width / 2, middle - 1.15, note, size=8.8, color=muted)

    def arrow(self, start: tuple, end: tuple, *, bend: float = 0.0, dashed: bool = False) -> None:
        arrow = FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=12,
            connectionstyle=f"arc3,rad={bend}",
            color=self.theme["arrow"],
            linestyle=(0, (4, 3)) if dashed else "-",
            lw=1.4,
            shrinkA=0,
            shrinkB=0,
            zorder=2,
        )
        self.axes.add_patch(arrow)


def draw(theme: dict) -> Figure:
    """The whole picture."""
    drawing = Drawing(theme)
    _host(drawing)
    _augmentation(drawing)
    _models(drawing)
    _update(drawing)
    _evaluation(drawing)
    return drawing.figure


def _host(drawing: Drawing) -> None:
    drawing.panel(1, 11.5, 21, 37.5, "Host threads")
    drawing.box(3, 38, 17, 6, "host", "read a record", "tfds, folders, arrays")
    drawing.box(3, 29, 17, 6, "host", "decode once", "once for all repeats")
    drawing.box(3, 20, 17, 6, "host", "canvas, size, label", "uint8, one array per batch")
    drawing.arrow((11.5, 38), (11.5, 35.2))
    drawing.arrow((11.5, 29), (11.5, 26.2))
    note = "each batch a function of\n(seed, step): a killed run\nresumes bit for bit"
    drawing.text(11.5, 15.6, note, size=8.8, color=drawing.theme["muted"])


def _augmentation(drawing: Drawing) -> None:
    drawing.panel(26, 11.5, 73, 37.5, "Device: one jitted, sharded step")
    steps = (
        (38, "crop, resize, flip", "as Pillow does"),
        (30.5, "RandAugment", "the 15 operations of timm"),
        (23, "normalize, erase", ""),
        (15.5, "mixup or CutMix", "and smoothed labels"),
    )
    for y, title, note in steps:
        drawing.box(28.5, y, 18, 6, "augment", title, note)
    for y in (38, 30.5, 23):
        drawing.arrow((37.5, y), (37.5, y - 1.4))
    drawing.arrow((20, 23), (28.3, 41), bend=-0.12)


def _models(drawing: Drawing) -> None:
    drawing.box(52, 36.5, 18, 7.5, "teacher", "frozen teacher", "RegNetY, or any model")
    drawing.rectangle(52, 14, 18, 17.5, "student")
    drawing.text(61, 29, "student: DeiT")
    drawing.box(53.5, 21.3, 15, 5, "student", "distillation head")
    drawing.box(53.5, 15.3, 15, 5, "student", "class head")
    drawing.arrow((46.5, 20), (51.8, 38.5), bend=0.1)
    drawing.arrow((46.5, 18.5), (51.8, 20), bend=0.0)


def _update(drawing: Drawing) -> None:
    drawing.rectangle(77, 24.7, 19.5, 19.3, "update")
    drawing.text(86.75, 41.8, "weighted sum of losses")
    drawing.box(78.5, 33.4, 16.5, 6.4, "update", "distillation loss", "teacher's labels or logits")
    drawing.box(78.5, 25.9, 16.5, 6.4, "update", "label loss", "cross-entropy or BCE")
    drawing.box(
        77, 14.0, 19.5, 8, "update", "optimizer, EMA", "AdamW, LAMB, SGD;\nweight decay by group"
    )
    drawing.arrow((70, 40.2), (78.3, 37.4))
    drawing.arrow((68.5, 24.3), (78.3, 35.4), bend=0.12)
    drawing.arrow((68.5, 18.3), (78.3, 29.0), bend=0.12)
    drawing.arrow((86.75, 24.7), (86.75, 22.2))
    drawing.arrow((77, 15.8), (70.2, 15.8), dashed=True)


def _evaluation(drawing: Drawing) -> None:
    drawing.panel(1, 1, 98, 8, "Evaluation")
    note = (
        "every image exactly once (padded and masked); weights as trained and their EMA;"
        " class head, distillation head, mean of logits, sum of softmaxes"
    )
    drawing.text(2.5, 3.4, note, size=9.6, ha="left", color=drawing.theme["muted"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--png", type=pathlib.Path, help="folder for PNG files as well")
    png = parser.parse_args().png
    # Text as outlines looks the same everywhere; a fixed salt and no date give the same bytes.
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "deit_jax"})
    folder = pathlib.Path(__file__).parent
    for name, theme in THEMES.items():
        figure = draw(theme)
        figure.savefig(folder / f"data_flow_{name}.svg", transparent=True, metadata={"Date": None})
        if png:
            back = {"light": "#ffffff", "dark": "#0d1117"}[name]
            figure.savefig(png / f"data_flow_{name}.png", facecolor=back, dpi=110)


if __name__ == "__main__":
    main()
