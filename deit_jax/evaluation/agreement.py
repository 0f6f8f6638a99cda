"""Who agrees with whom: the share of images on which two readers differ (paper, Table 4)."""

from collections.abc import Mapping

import numpy as np

# Readers in the order of the paper's table, and what they are called.
READERS = {
    "label": "label",
    "teacher": "teacher",
    "class": "class head",
    "dist": "distillation head",
    "mean": "both heads",
}
_PREFIX = "differ/"


def differences(choices: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`{'differ/A/B': share}` for every pair of readers.

    Args:
      choices: for each reader its first choice of every image, int [n].
    """
    names = list(choices)
    return {
        f"{_PREFIX}{a}/{b}": float(np.mean(choices[a] != choices[b]))
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def table(results: Mapping[str, float], *, title: str = "differ on, % of images") -> str:
    """The matrix as text, in percent of the images; readers that are not there are left out.

    Args:
      results: shares under `differ/A/B`, either order of A and B; other keys are ignored.
      title: for the corner.
    """
    shares = {}
    for key, value in results.items():
        if key.startswith(_PREFIX):
            a, b = key.removeprefix(_PREFIX).split("/")
            shares[a, b] = shares[b, a] = value
    names = [name for name in READERS if any(name in pair for pair in shares)]
    titles = [READERS[name] for name in names]
    left = max(map(len, [title, *titles]))
    lines = ["  ".join([title.ljust(left), *titles])]
    for name in names:
        cells = [
            f"{100 * shares.get((name, other), 0.0):.2f}".rjust(len(READERS[other]))
            for other in names
        ]
        lines.append("  ".join([READERS[name].ljust(left), *cells]))
    return "\n".join(lines)
