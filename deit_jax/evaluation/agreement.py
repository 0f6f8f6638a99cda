"""Who agrees with whom: the share of images on which two first choices differ (paper, Table 4)."""

import itertools
from collections.abc import Mapping

import numpy as np

from deit_jax.evaluation.heads import HEADS
from deit_jax.tracking import text

# The rows of the paper's table, in its order, and their titles.
TITLES = {"label": "label", "teacher": "teacher"} | {
    name: HEADS[name].title for name in ("class", "dist", "mean")
}


def key(a: str, b: str) -> str:
    """The name among results of the share of images on which `a` and `b` differ."""
    return f"differ/{a}/{b}"


def differences(choices: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`{'differ/A/B': share}` for every pair of first choices, each int [n] for all images."""
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
    pairs = itertools.permutations(TITLES, 2)
    shares = {pair: results[key(*pair)] for pair in pairs if key(*pair) in results}
    names = [name for name in TITLES if any(name in pair for pair in shares)]
    rows = [[title, *(TITLES[name] for name in names)]]
    for name in names:
        values = [shares.get((name, b), shares.get((b, name), 0.0)) for b in names]
        rows.append([TITLES[name], *(f"{100 * value:.2f}" for value in values)])
    return text.table(rows)
