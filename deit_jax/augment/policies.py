"""The `auto_augment` option: a RandAugment or AutoAugment string, and doing what it says."""

import jax

from deit_jax.augment import autoaugment, randaugment
from deit_jax.augment.operations import apply_layers
from deit_jax.errors import unknown

Policy = randaugment.RandAugmentSpec | autoaugment.AutoAugmentSpec


def parse(config: str) -> Policy:
    """The meaning of 'rand-...' (see `randaugment.parse`) or of an AutoAugment policy's name.

    Raises ValueError for a string that timm's `auto_augment` does not know.
    """
    name = config.split("-")[0]
    if name == "rand":
        return randaugment.parse(config)
    if name not in autoaugment.POLICIES:
        raise unknown(
            "policy auto_augment", config, ["rand-m9-mstd0.5-inc1", *autoaugment.POLICIES]
        )
    return autoaugment.parse(config)


def draw(keys: jax.Array, policy: Policy) -> tuple[jax.Array, jax.Array]:
    """Operations int32 [n, layers] (NOTHING where not applied), arguments float32 [n, layers]."""
    kind = randaugment if isinstance(policy, randaugment.RandAugmentSpec) else autoaugment
    return kind.draw(keys, policy)


def auto_augment(
    keys: jax.Array, pixels: jax.Array, *, policy: Policy, fill: tuple[int, int, int]
) -> jax.Array:
    """Pixels uint8 [n, s, s, 3] as the policy changes them, one key per image."""
    return apply_layers(pixels, *draw(keys, policy), shares=policy.shares, fill=fill)
