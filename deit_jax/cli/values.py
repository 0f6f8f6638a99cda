"""Types of command-line options: numbers that can be used."""

import argparse
import math
from collections.abc import Callable
from typing import Any

_MOST = 2**31 - 1


def positive(text: str) -> int:
    """A whole number from 1 to 2^31 - 1."""
    return _between(int, text, "a whole number from 1", 1)


def positives(text: str) -> list[int]:
    """Whole numbers from 1 to 2^31 - 1, separated by commas."""
    return [positive(one) for one in text.split(",")]


def seed(text: str) -> int:
    """A whole number from 0 to 2^32 - 1, as `config.seed`."""
    return _between(int, text, "a whole number from 0 to 4294967295", 0, 2**32 - 1)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    return _between(float, text, "a number above 0", math.ulp(0.0))


def crop_ratio(text: str) -> float:
    """A number from 0.1 to 1: what the center crop keeps of the short side."""
    return _between(float, text, "a number from 0.1 to 1", 0.1, 1)


def _between(kind: Callable, text: str, words: str, least: float, most: int = _MOST) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"takes {words}, not {text[:100]!r}")
    return value
