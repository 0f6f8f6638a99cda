"""What is written beside weights, checked: it may be of any type, size or value."""

from typing import Any

from deit_jax import builders, config
from deit_jax.errors import ConfigError
from deit_jax.models import Model, registry

# Beyond any size of a model or an image; more would only take time and memory.
_LARGEST = 1_000_000
# Per channel of the pixels / 255.
_MEANS, _STDS = (-1e3, 1e3), (1e-4, 1e4)
_CROP_RATIOS = (1e-2, 1e2)


def check_model(section: Any) -> dict[str, Any]:
    """A new dict of the registered `name` and further arguments of `create_model`."""
    if not isinstance(section, dict) or not isinstance(section.get("name"), str):
        raise ConfigError("the notes on the model beside the weights are damaged")
    return dict(section)


def check_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `create_model` in the types of the model's attributes.

    Raises:
      ConfigError: one of another type, or a number that no model has.
    """
    known = registry.options({"name": name}) | {"num_classes": builders.Option(1000, int)}
    checked = dict(arguments)
    for key in [key for key in arguments if key in known]:
        try:
            checked[key] = config.converted(arguments[key], known[key].annotation)
        except TypeError:
            kind = config.type_name(known[key].annotation)
            raise ConfigError(f"{key} takes {kind}, not {arguments[key]!r}") from None
        values = checked[key] if isinstance(checked[key], tuple) else (checked[key],)
        for value in [value for value in values if isinstance(value, int | float)]:
            if not (0 <= value <= _LARGEST) or type(value) is int and value == 0:
                raise ConfigError(f"{key} cannot be {arguments[key]!r}")
    return checked


def check_depth(arguments: dict[str, Any], num_tensors: int) -> None:
    """Raises ConfigError for more blocks than a file of so many tensors can hold."""
    depth = max(arguments.get("depth", 0), sum(arguments.get("depths", ())))
    if depth > num_tensors:
        raise ConfigError(f"the notes say {depth} blocks, but there are {num_tensors} tensors")


def check_class_names(names: Any, model: Model) -> tuple[str, ...] | None:
    """K names, None where there are none."""
    if not names:
        return None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError("the class names beside the weights are not a list of names")
    if len(names) != model.num_classes:
        raise ConfigError(f"{len(names)} class names for {model.num_classes} classes")
    return tuple(names)


def check_image(image: Any) -> dict[str, Any]:
    """`mean`, `std`, `crop_ratio` and `size`, those that are there."""
    if not isinstance(image, dict):
        raise ConfigError("the notes on the image beside the weights are damaged")
    for key, count, (low, high) in (("mean", 3, _MEANS), ("std", 3, _STDS), ("size", 2, (1, 1e5))):
        if key in image and not _are_numbers(image[key], count, low, high):
            raise ConfigError(
                f"{key} must be {count} numbers from {low:g} to {high:g}, not {image[key]!r}"
            )
    if "crop_ratio" in image and not _are_numbers([image["crop_ratio"]], 1, *_CROP_RATIOS):
        raise ConfigError(f"crop_ratio cannot be {image['crop_ratio']!r}")
    return image


def _are_numbers(values: Any, count: int, low: float, high: float) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(type(value) in (int, float) and low <= value <= high for value in values)
    )
