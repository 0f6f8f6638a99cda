"""The stage on uint8 pixels: a policy of operations, 3-Augment, color jitter."""

from typing import Any

import jax

from deit_jax import builders
from deit_jax.augment import policies
from deit_jax.augment import three_augment as without_policy
from deit_jax.augment.normalize import IMAGENET_MEAN, fill_color
from deit_jax.augment.operations import apply_layers
from deit_jax.augment.stage import Draw, PixelStage, Supplied, noted
from deit_jax.errors import ConfigError, check_at_most


@builders.chooses(auto_augment=policies.chosen)
def make_color(
    supplied: Supplied,
    *,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    three_augment: bool = False,
    color_jitter: float = 0.3,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    **options: Any,
) -> PixelStage | None:
    """Color and geometry of the crop.

    Args:
      auto_augment: a timm string, 'rand-m9-mstd0.5-inc1' or such (RandAugment), or the name of
        an AutoAugment policy ('original', 'originalr', 'v0', 'v0r', with '-mstd0.5' for
        noise); None or '' is off.
      three_augment: DeiT-III's 3-Augment, in place of a policy.
      color_jitter: strength; 0 is off, and a policy turns it off too, as in timm.
      mean: of the normalization; its color fills the outside of a moved image, as in timm.
      options: those of the policy.
    """
    if color_jitter < 0:
        raise ConfigError(f"color_jitter must be at least 0 (off), not {color_jitter}")
    check_at_most(100, color_jitter=color_jitter)
    if auto_augment and three_augment:
        raise ConfigError(
            f"three_augment takes the place of RandAugment: with auto_augment={auto_augment!r} "
            "set three_augment=False, or auto_augment=None with three_augment=True"
        )
    if auto_augment:
        (make,) = policies.chosen(auto_augment)
        policy = make(auto_augment, **options)
        off = f"color jitter {color_jitter:g} is off with a policy, as in timm"
        drawn = {"names": policy.operations, "shares": policy.shares, "fill": fill_color(mean)}
        stage = lambda draw, pixels: apply_layers(pixels, *policy.draw(draw("operations")), **drawn)
        return noted(stage, policy.note, off if color_jitter else "")
    if not three_augment and color_jitter == 0:
        return None

    def colored(draw: Draw, pixels: jax.Array) -> jax.Array:
        if three_augment:
            pixels = without_policy.three_augment(draw("operations"), pixels)
        if color_jitter > 0:
            key = draw("color_jitter")
            pixels = without_policy.color_jitter(key, pixels, strength=color_jitter)
        return pixels

    notes = [builders.headline(without_policy.three_augment)] if three_augment else []
    if color_jitter:
        span = f"factors {max(0, 1 - color_jitter):g} to {1 + color_jitter:g}"
        notes.append(f"{builders.headline(without_policy.color_jitter)}, {span}")
    return noted(colored, *notes)
