"""A recipe on its device, in words: what is chosen there, whether it fits, hours per epoch."""

import math

from deit_jax.models import accelerator
from deit_jax.recipe import costs, fit
from deit_jax.recipe.devices import DEVICES, Device, listed
from deit_jax.recipe.readings import READINGS
from deit_jax.recipe.recipe import Recipe
from deit_jax.tracking.progress import format_duration


def describe(recipe: Recipe) -> dict[str, str]:
    """Lines by what they are about; on a device that is not in the table, less of them."""
    device = recipe.device
    entry = device if isinstance(device, Device) else listed(device)
    lines = {"device": _specification(entry) if entry else accelerator.describe(device)}
    lines["chosen"] = _chosen(recipe)
    if (available := fit.available_bytes(device)) is not None:
        lines["fits"] = fit.verdict(recipe, available)
    for number, text in enumerate(_hours(recipe, entry) if entry else ()):
        lines["hours per epoch" if number == 0 else " " * number] = text
    return lines


def _specification(device: Device) -> str:
    peaks = ", ".join(f"{peak:g} {dtype}" for dtype, peak in device.peaks.items())
    capability = device.compute_capability
    return (
        f"{device.title}: {f'compute capability {capability}, ' if capability else ''}"
        f"{device.memory:g} GB, {device.bandwidth:,g} GB/s, peak in TFLOP/s {peaks}"
        + (f"; a chip is {device.per_chip} devices" if device.per_chip > 1 else "")
    )


def choices(recipe: Recipe) -> dict[str, str]:
    """What the options that may be `auto` are on the recipe's device: `{'model.dtype': ...}`."""
    section, model = recipe.config.model, recipe.model
    found = {"model.dtype": model.dtype}
    if "attention" in section:
        # A choice of the user's is that; it is checked when the model is made.
        asked = model.clone(attention=section.attention)
        found["model.attention"] = asked.attention_on(recipe.device)
    if recipe.teacher and recipe.teacher.model:
        found["teacher.dtype"] = recipe.teacher.model.dtype
    return found


def _chosen(recipe: Recipe) -> str:
    section, model = recipe.config.model, recipe.model
    of_model = {k.removeprefix("model."): v for k, v in choices(recipe).items() if "model." in k}
    auto = {key for key in of_model if section.get(key) == "auto"}
    parts = [f"{k} {v}{' (auto)' if k in auto else ''}" for k, v in of_model.items()]
    auto = accelerator.resolve_dtype("auto", recipe.device)
    slow = model.dtype == "bfloat16" and auto == "float32" and recipe.device.platform != "cpu"
    if slow:
        parts.append("which has no bfloat16 units: auto is float32 here")
    if model.dtype == auto == "float32" and recipe.device.platform in ("gpu", "cuda"):
        parts.append("config.model.dtype=float16, with a scaled loss, is faster here")
    return ", ".join(parts)


def _hours(recipe: Recipe, entry: Device) -> list[str]:
    """Hours per epoch of all devices, each with where the number is from."""
    durations, model = recipe.durations, recipe.model
    teacher = recipe.teacher and recipe.teacher.model
    images = durations.steps_per_epoch * durations.batch_size
    lines = []
    peak = entry.peak_flops(model.dtype)
    if peak is not None and not (recipe.teacher and teacher is None):
        macs = costs.step_macs(model, batch_size=durations.batch_size, teacher=teacher)
        flops = 2 * sum(macs.values()) * durations.steps_per_epoch
        hours = flops / (peak * recipe.device_count) / 3600
        lines.append(f"at least {_digits(hours)}, by arithmetic alone at the peak of {model.dtype}")
    if recipe.teacher or not _is_plain(recipe) or model.dtype == "float32":
        return lines
    for reading in READINGS:
        if (DEVICES[reading.device].title, reading.embed_dim) == (entry.title, model.embed_dim):
            rate = reading.images_per_second / entry.per_chip * recipe.device_count
            lines.append(
                f"{_digits(images / rate / 3600)} at {reading.images_per_second:,.0f} images/s "
                f"per {'chip' if entry.platform == 'tpu' else 'device'}: {reading.source}"
            )
    return lines


def _is_plain(recipe: Recipe) -> bool:
    """Whether the model is of the size and kind that `readings` is about."""
    model = recipe.model
    shape = (getattr(model, "patch_size", 0), getattr(model, "depth", 0), model.image_size)
    return shape == (16, 12, (224, 224))


def _digits(hours: float) -> str:
    """`0.53 (32m)`: two digits, and where it is less than an hour also as one says it."""
    digits = f"{hours:.{max(0, 1 - math.floor(math.log10(hours)))}f}" if hours else "0"
    return f"{digits} ({format_duration(3600 * hours)})" if hours < 1 else digits
