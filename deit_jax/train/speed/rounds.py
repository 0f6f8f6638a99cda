"""Rounds of measurements: interleaved, with median and spread. Needs the standard library alone."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Result = TypeVar("Result")


def interleave(cases: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """`rounds` results of every case, in the order A B A B ...

    If the machine slows down meanwhile, all cases slow down alike.
    """
    results: dict[str, list[Result]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            results[name].append(run())
    return results


def summary(values: list[float]) -> dict[str, Any]:
    """Median, quartiles, extremes, their distance in percent of the median, and all values."""
    median = statistics.median(values)
    ends = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    spread = 100 * (max(values) - min(values)) / median if median else 0.0
    return {
        "median": rounded(median),
        "quartiles": [rounded(ends[0]), rounded(ends[2])],
        "least": rounded(min(values)),
        "most": rounded(max(values)),
        "spread_percent": round(spread, 1),
        "rounds": [rounded(value) for value in values],
    }


def rounded(value: float) -> float:
    """To five digits."""
    return float(f"{value:.5g}")
