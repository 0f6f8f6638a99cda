"""Published accuracies beside measured throughputs, see `figures.speed`."""

import re
from collections.abc import Sequence
from typing import Any

from deit_jax.figures.speed import Point
from deit_jax.models import create_model
from deit_jax.pretrained import hub

# By how a name begins; the first that fits.
_FAMILIES = {
    "deit3_": "DeiT-III",
    r"deit_\w+_distilled_": "DeiT, distilled",
    "deit_": "DeiT",
    "regnety_": "RegNetY",
}


def points(results: Sequence[dict[str, Any]]) -> tuple[list[Point], list[str]]:
    """The fastest inference of each model and library, and a line for each model left out."""
    fastest: dict[tuple[str, str], Point] = {}
    left_out: dict[str, str] = {}
    for result in results:
        name = result["name"]
        if result["kind"] != "inference":
            continue
        entry = next(iter(hub.checkpoints_of(name).values()), None)
        size = list(create_model(name).image_size)
        if entry is None or not result["registered"]:
            left_out[name] = f"{result['model']} is not in the figure: no published accuracy"
        elif result["image_size"] != size:
            left_out[name] = (
                f"{result['model']} is not in the figure: published at {size[0]} pixels"
            )
        else:
            key = name, result["by"]
            rate = result["images_per_s"]["median"]
            point = Point(_family(name), _short(name), result["by"], rate, entry.top1)
            if key not in fastest or rate > fastest[key].images_per_s:
                fastest[key] = point
    return list(fastest.values()), list(left_out.values())


def sources(names: Sequence[str]) -> list[str]:
    """Lines that say where the accuracies of registered models are from."""
    entries = (next(iter(hub.checkpoints_of(name).values()), None) for name in names)
    found = dict.fromkeys(entry.source for entry in entries if entry)
    return [f"top-1: {source}" for source in found]


def _family(name: str) -> str:
    return next((title for start, title in _FAMILIES.items() if re.match(start, name)), "other")


def _short(name: str) -> str:
    return re.sub(r"_patch\d+_(\d+)$", r"_\1", name).removesuffix("_224")
