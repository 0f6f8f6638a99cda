"""The table of models: timm's names, each with its class and the published attributes."""

import dataclasses
import fnmatch
import inspect
from collections.abc import Mapping
from typing import Any

from deit_jax import builders
from deit_jax.models import accelerator
from deit_jax.models.deit import VisionTransformer
from deit_jax.models.model import Model
from deit_jax.models.regnet import RegNet, stage_design

Architecture = tuple[type[Model], dict[str, Any]]

_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_MEDIUM = {"embed_dim": 512, "depth": 12, "num_heads": 8}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_HUGE = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
_DEIT3 = {"class_position": False, "layer_scale_init": 1e-4, "drop_path_schedule": "constant"}


def _deit(size: dict[str, Any], **own: Any) -> Architecture:
    published = {"image_size": 224, "patch_size": 16, "drop_path_rate": 0.1}
    return VisionTransformer, published | size | own


def _deit3(size: dict[str, Any], *, drop_path_rate: float, **own: Any) -> Architecture:
    return _deit(_DEIT3 | size, drop_path_rate=drop_path_rate, **own)


def _regnety(
    w0: int,
    wa: float,
    wm: float,
    group_size: int,
    depth: int,
    *,
    min_share: float = 0.0,
    **own: Any,
) -> Architecture:
    design = stage_design(
        w0=w0, wa=wa, wm=wm, depth=depth, group_size=group_size, min_share=min_share
    )
    return RegNet, {"image_size": 224} | design | own


# name -> (class, attributes). Stochastic depth is that of the published training run.
ARCHITECTURES: dict[str, Architecture] = {
    "deit_tiny_patch16_224": _deit(_TINY),
    "deit_small_patch16_224": _deit(_SMALL),
    "deit_base_patch16_224": _deit(_BASE),
    "deit_tiny_distilled_patch16_224": _deit(_TINY, distilled=True),
    "deit_small_distilled_patch16_224": _deit(_SMALL, distilled=True),
    "deit_base_distilled_patch16_224": _deit(_BASE, distilled=True),
    "deit_base_patch16_384": _deit(_BASE, image_size=384),
    "deit_base_distilled_patch16_384": _deit(_BASE, image_size=384, distilled=True),
    "deit3_small_patch16_224": _deit3(_SMALL, drop_path_rate=0.05),
    "deit3_small_patch16_384": _deit3(_SMALL, image_size=384, drop_path_rate=0.0),
    "deit3_medium_patch16_224": _deit3(_MEDIUM, drop_path_rate=0.1),
    "deit3_base_patch16_224": _deit3(_BASE, drop_path_rate=0.2),
    "deit3_base_patch16_384": _deit3(_BASE, image_size=384, drop_path_rate=0.15),
    "deit3_large_patch16_224": _deit3(_LARGE, drop_path_rate=0.45),
    "deit3_large_patch16_384": _deit3(_LARGE, image_size=384, drop_path_rate=0.4),
    "deit3_huge_patch14_224": _deit3(_HUGE, patch_size=14, drop_path_rate=0.55),
    "regnety_002": _regnety(24, 36.44, 2.49, 8, 13),
    "regnety_004": _regnety(48, 27.89, 2.09, 8, 16),
    "regnety_006": _regnety(48, 32.54, 2.32, 16, 15),
    "regnety_008": _regnety(56, 38.84, 2.4, 16, 14),
    "regnety_016": _regnety(48, 20.71, 2.65, 24, 27),
    "regnety_032": _regnety(80, 42.63, 2.66, 24, 21),
    "regnety_040": _regnety(96, 31.41, 2.24, 64, 22),
    "regnety_064": _regnety(112, 33.22, 2.27, 72, 25),
    "regnety_080": _regnety(192, 76.82, 2.19, 56, 17),
    "regnety_120": _regnety(168, 73.36, 2.37, 112, 19),
    "regnety_160": _regnety(200, 106.23, 2.48, 112, 18),
    "regnety_320": _regnety(232, 115.89, 2.53, 232, 20),
    "regnety_640": _regnety(352, 147.48, 2.4, 328, 20),
    "regnety_1280": _regnety(456, 160.83, 2.52, 264, 27),
    "regnety_2560": _regnety(640, 230.83, 2.53, 373, 27),
    "regnety_040_sgn": _regnety(96, 31.41, 2.24, 64, 22, activation="silu", norm_group=16),
    # torchvision's, whose widths are rounded in another way.
    "regnety_008_tv": _regnety(56, 38.84, 2.4, 16, 14, min_share=0.9),
    "regnety_080_tv": _regnety(192, 76.82, 2.19, 56, 17, min_share=0.9),
}


def list_models(pattern: str = "*") -> list[str]:
    """Registered names that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(ARCHITECTURES, pattern))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    device: Any = None,
    **attributes: Any,
) -> Model:
    """The registered model `name`, with any attribute of its class overridden.

    Args:
      image_size: one side or (height, width) in pixels; None for the published one.
      device: what it is for: decides which type `dtype="auto"` is and whether the attention can
        be had, see `accelerator`; jax's first by default.
      attributes: of the class, see `options`; those left out are as published.

    Raises:
      ConfigError: an unknown name or dtype, or attributes that do not fit together.
      TypeError: an attribute that the class does not have.
    """
    cls, published = builders.choose(ARCHITECTURES, name, "model")
    known = ["num_classes", *list(options({"name": name}))[1:]]
    if extra := sorted(attributes.keys() - set(known)):
        raise TypeError(f"model {name} takes no {', '.join(extra)}; known: {', '.join(known)}")
    given = published | attributes | {"num_classes": num_classes}
    size = given["image_size"] if image_size is None else image_size
    given["image_size"] = (size, size) if isinstance(size, int) else size
    given["dtype"] = accelerator.resolve_dtype(given.get("dtype", "float32"), device)
    model = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    model.check()
    model.check_device(device)
    return model


def options(section: Mapping[str, Any]) -> dict[str, builders.Option]:
    """The options of a `model` section: its name, and the attributes of the class it names.

    Defaults are the published values. The number of classes is not an option: the data
    determine it.

    Raises:
      ConfigError: an unknown name.
    """
    name = section.get("name", "")
    cls, published = builders.choose(ARCHITECTURES, name, "model")
    own = {"name": builders.Option(name, str)}
    for field in dataclasses.fields(cls):
        if field.name not in ("parent", "name", "num_classes"):
            required = field.default is dataclasses.MISSING
            default = inspect.Parameter.empty if required else field.default
            own[field.name] = builders.Option(published.get(field.name, default), field.type)
    own["image_size"] = own["image_size"]._replace(annotation=int | tuple[int, int])
    return own
