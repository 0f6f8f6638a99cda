"""Text tables."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Rows of cells as aligned lines: the first `left` columns to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    lines = []
    for row in rows:
        cells = [pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
