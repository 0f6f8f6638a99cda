"""Who agrees with whom: the share of images on which two first choices differ (paper, Table 4)."""

import itertools
from collections.abc import Mapping

import numpy as np

from deit_jax.evaluation.heads import HEADS

# The rows of the paper's table, in its order, and their titles.
TITLES = {"label": "label", "teacher": "teacher"} | {
    name: HEADS[name].title for name in ("class", "dist", "mean")
}
_PREFIX = "differ/"


def key(a: str, b: str) -> str:
    """Where the share of images on which `a` and `b` differ is found among results."""
    return f"{_PREFIX}{a}/{b}"


def differences(choices: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`{'differ/A/B': share}` for every pair.

    Args:
      choices: the first choice for every image, int [n], of each head output, label or teacher.
    """
    return {
        key(a, b): float(np.mean(choices[a] != choices[b]))
        for a, b in itertools.combinations(choices, 2)
    }


def table(results: Mapping[str, float], *, title: str = "differ on, % of images") -> str:
    """The matrix as text, in percent of the images, of those `TITLES` that are in the results.

    Args:
      results: shares under `differ/A/B`, either order of A and B; other keys are ignored.
      title: for the corner.
    """
    shares = {}
    for name, value in results.items():
        if name.startswith(_PREFIX):
            a, b = name.removeprefix(_PREFIX).split("/")
            shares[a, b] = shares[b, a] = value
    names = [name for name in TITLES if any(name in pair for pair in shares)]
    titles = [TITLES[name] for name in names]
    left = max(map(len, [title, *titles]))
    lines = ["  ".join([title.ljust(left), *titles])]
    for name in names:
        cells = [
            f"{100 * shares.get((name, other), 0.0):.2f}".rjust(len(TITLES[other]))
            for other in names
        ]
        lines.append("  ".join([TITLES[name].ljust(left), *cells]))
    return "\n".join(lines)
