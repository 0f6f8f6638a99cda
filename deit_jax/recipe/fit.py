"""Whether a training step fits the memory of its devices, and what would make it fit.

By the estimate of `costs.step_memory`, which is an upper one.
"""

import dataclasses
import os
from typing import Any

import ml_collections

from deit_jax.models import accelerator
from deit_jax.recipe import costs
from deit_jax.recipe.devices import MEMORY_SHARE, Device, listed
from deit_jax.recipe.recipe import Recipe

_GIB = 2**30


def available_bytes(device: Any) -> float | None:
    """Bytes that jax can use on a device, of jax or of the table; None where that is unknown."""
    if not isinstance(device, Device):
        stats = device.memory_stats() or {}
        if "bytes_limit" in stats:
            return stats["bytes_limit"]
        device = listed(device)
    return device and device.usable_bytes


def verdict(recipe: Recipe, available: float) -> str:
    """`yes: ...`, or `perhaps not: ...` and what would fit."""
    needed = f"at most about {gib(costs.step_memory(recipe).total)} of {gib(available)}"
    if costs.step_memory(recipe).total <= available:
        return f"yes: {needed}{_share(recipe.device)}"
    return f"perhaps not: {needed}{_share(recipe.device)}; {remedies(recipe, available)}"


def out_of_memory(recipe: Recipe) -> str:
    """What to say when the devices' memory did not suffice, with what would fit instead."""
    needed, available = costs.step_memory(recipe).total, available_bytes(recipe.device)
    # It did not fit, whatever the estimate says.
    goal = 0.8 * needed if available is None else min(available, 0.8 * needed)
    of = "" if available is None else f" of {gib(available)}"
    return (
        f"the devices have too little memory for this run, which needs about {gib(needed)}{of} on "
        f"each; {remedies(recipe, goal)}; if it was in evaluation, lower config.eval.batch_size "
        f"(now {recipe.config.eval.batch_size})"
    )


def remedies(recipe: Recipe, available: float) -> str:
    """`each of these fits: config.step.accum_steps=4 (now 1; 7.9 GiB), ...`.

    What is not enough by itself is named too; where nothing is, what all do together.
    """
    alone = [change(recipe, available) for change in _CHANGES]
    fit, short = [], []
    for text, changed in filter(None, alone):
        size = costs.step_memory(changed).total
        (fit if size <= available else short).append(f"{text}; {gib(size)})")
    if fit:
        rest = [f"not enough by itself: {', '.join(short)}"] if short else []
        return "; ".join([f"each of these fits: {', '.join(fit)}", *rest])
    together = []
    for change in (_half, _remat_full, _accumulated):
        if (step := change(recipe, available)) is not None:
            together.append(f"{step[0]})")
            recipe = step[1]
    size = costs.step_memory(recipe).total
    kind = "these fit together" if size <= available else "not enough even together"
    return f"{kind}: {', '.join(together)} ({gib(size)}), on more devices with config.mesh.fsdp"


# "config.step.accum_steps=4 (now 1", and the recipe with it.
Change = tuple[str, Recipe]


def _smaller(recipe: Recipe, available: float) -> Change | None:
    """The largest batch that fits, in pairs of rows for every device and micro-batch."""
    unit = 2 * recipe.device_count * recipe.config.step.accum_steps
    low, high = 1, (recipe.durations.batch_size - 1) // unit
    if high < 1:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        fits = costs.step_memory(_with_batch(recipe, middle * unit)).total <= available
        low, high = (middle, high) if fits else (low, middle - 1)
    changed = _with_batch(recipe, low * unit)
    now = recipe.durations.batch_size
    return f"config.train.batch_size={low * unit} (now {now}", changed


def _accumulated(recipe: Recipe, available: float) -> Change | None:
    """The fewest micro-batches that fit, or the most that there can be."""
    steps, rows = recipe.config.step.accum_steps, recipe.durations.batch_size // recipe.device_count
    changed = None
    for more in range(steps + 1, rows + 1):
        if rows % more == 0:
            text = f"config.step.accum_steps={more} (now {steps}"
            changed = text, _with_accumulation(recipe, more)
            if costs.step_memory(changed[1]).total <= available:
                break
    return changed


def _remat_dots(recipe: Recipe, available: float) -> Change | None:
    return _with_model(recipe, "remat", "dots") if _remat(recipe) == "none" else None


def _remat_full(recipe: Recipe, available: float) -> Change | None:
    return _with_model(recipe, "remat", "full") if _remat(recipe) in ("none", "dots") else None


def _half(recipe: Recipe, available: float) -> Change | None:
    if recipe.model.dtype != "float32":
        return None
    # Without bfloat16 units it is float16, with a scaled loss.
    old_gpu = recipe.device.platform != "cpu" and _auto(recipe) == "float32"
    return _with_model(recipe, "dtype", "float16" if old_gpu else "bfloat16")


_CHANGES = (_smaller, _accumulated, _remat_dots, _remat_full, _half)


def _auto(recipe: Recipe) -> str:
    return accelerator.resolve_dtype("auto", recipe.device)


def _remat(recipe: Recipe) -> str | None:
    return getattr(recipe.model, "remat", None)


def _with_model(recipe: Recipe, key: str, value: str) -> Change:
    attributes: dict[str, Any] = {key: value}
    text = f"config.model.{key}={value} (now {getattr(recipe.model, key)}"
    return text, dataclasses.replace(recipe, model=recipe.model.clone(**attributes))


def _with_batch(recipe: Recipe, size: int) -> Recipe:
    return dataclasses.replace(
        recipe, durations=dataclasses.replace(recipe.durations, batch_size=size)
    )


def _with_accumulation(recipe: Recipe, steps: int) -> Recipe:
    config = ml_collections.ConfigDict(recipe.config.to_dict())
    config.step.accum_steps = steps
    return dataclasses.replace(recipe, config=config)


def _share(device: Any) -> str:
    """What of the memory jax takes, where that is a choice."""
    if not isinstance(device, Device) or device.platform != "gpu":
        return ""
    share = f"{device.usable_bytes / device.memory / 1e9:.0%} of its {device.memory:g} GB"
    advice = "" if os.environ.get(MEMORY_SHARE) else f", {MEMORY_SHARE}=.95 makes it 95%"
    return f" that jax takes ({share}{advice})"


def gib(size: float) -> str:
    """`7.9 GiB`."""
    return f"{size / _GIB:.1f} GiB"
