"""Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing, per mix group.

The published runs drew one lambda per process and its 64 images. Here a mix group
is `mix_group` neighbouring rows of the global batch, whatever the devices are, and
a row is mixed with the mirrored row of its group (timm's `x.flip(0)`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from deit_jax.augment.crop import uniform_int

MIX_MODES = ("batch", "pair", "elem")
AUTO_MIX_GROUP = 64


def _group_sizes(batch_size: int, repeats: int) -> list[int]:
    return [
        g for g in range(2, batch_size + 1, 2) if batch_size % g == 0 and batch_size // g >= repeats
    ]


def resolve_mix_group(batch_size: int, repeats: int = 1, mix_group: int | None = None) -> int:
    """Rows per mix group.

    None takes the largest even divisor of `batch_size` up to 64 that leaves at
    least `repeats` groups, so that the copies of one image can lie in different
    groups. Raises ValueError, naming what works, for a size that cannot be had.
    """
    known = _group_sizes(batch_size, repeats)
    need = f"an even divisor of the batch of {batch_size} that leaves {repeats} groups or more"
    if not known:
        raise ValueError(
            f"mixup and cutmix need a mix group, {need}, and there is none; use a batch of a "
            f"multiple of {2 * repeats}, or mixup=0 and cutmix=0"
        )
    if mix_group is None:
        return max([g for g in known if g <= AUTO_MIX_GROUP])
    if mix_group not in known:
        raise ValueError(f"mix_group {mix_group} is not {need}; known: {known}")
    return mix_group


class MixDraw(NamedTuple):
    """One mix: weight `lam` of the row itself, box (top, bottom, left, right) when cutting."""

    lam: jax.Array  # float32 [], the box's area already taken off
    cut: jax.Array  # bool []
    box: jax.Array  # int32 [4]


def _beta(key: jax.Array, alpha: float) -> jax.Array:
    return jax.random.uniform(key) if alpha == 1.0 else jax.random.beta(key, alpha, alpha)


def _cut_box(key: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """timm's `rand_bbox`: sides int(side * sqrt(1 - lam)), centre uniform, clipped to the image."""
    ratio = jnp.sqrt(1.0 - lam)
    edges = []
    for side, side_key in zip((height, width), jax.random.split(key)):
        half = jnp.floor(side * ratio).astype(jnp.int32) // 2
        centre = uniform_int(side_key, jnp.int32(side - 1))
        edges += [jnp.maximum(centre - half, 0), jnp.minimum(centre + half, side)]
    return jnp.stack(edges)


def _cut_box_minmax(
    key: jax.Array, minmax: tuple[float, float], height: int, width: int
) -> jax.Array:
    """timm's `rand_bbox_minmax`: each side uniform between two shares of the image's."""
    edges = []
    for side, side_key in zip((height, width), jax.random.split(key)):
        length_key, start_key = jax.random.split(side_key)
        low, high = int(side * minmax[0]), int(side * minmax[1])
        length = low + uniform_int(length_key, jnp.int32(high - low - 1))
        start = uniform_int(start_key, side - length)
        edges += [start, start + length]
    return jnp.stack(edges)


def draw_mix(
    key: jax.Array,
    height: int,
    width: int,
    *,
    mixup: float,
    cutmix: float,
    cutmix_minmax: tuple[float, float] | None,
    mix_prob: float,
    switch_prob: float,
) -> MixDraw:
    """Whether, how and how much to mix: timm's `Mixup._params_per_batch` with corrected lambda."""
    mix_key, switch_key, mixup_key, cutmix_key, box_key = jax.random.split(key, 5)
    if cutmix_minmax is not None:
        cutmix = 1.0
    use_cut = jax.random.uniform(switch_key) < (switch_prob if mixup > 0 else 1.0)
    cut = use_cut & (cutmix > 0)
    mixup_lam = _beta(mixup_key, mixup) if mixup > 0 else jnp.float32(1.0)
    cut_lam = _beta(cutmix_key, cutmix) if cutmix > 0 else jnp.float32(1.0)
    if cutmix_minmax is None:
        box = _cut_box(box_key, cut_lam, height, width)
    else:
        box = _cut_box_minmax(box_key, cutmix_minmax, height, width)
    cut_area = (box[1] - box[0]) * (box[3] - box[2])
    lam = jnp.where(cut, 1.0 - cut_area / jnp.float32(height * width), mixup_lam)
    mixes = jax.random.uniform(mix_key) < mix_prob
    return MixDraw(jnp.where(mixes, lam, 1.0), cut & mixes, box)


def smoothed_one_hot(label: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """float32 [n, num_classes]: smoothing / K everywhere, and 1 - smoothing more at the label."""
    one_hot = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
    return one_hot * (1.0 - smoothing) + smoothing / num_classes


def _group_draws(key: jax.Array, groups: int, size: int, mode: str, draw) -> MixDraw:
    """Draws with leading axes [groups, size]: shared by the group, by its pairs, or by none."""
    group_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(groups))
    number = {"batch": 1, "pair": size // 2, "elem": size}[mode]
    keys = jax.vmap(lambda group_key: jax.random.split(group_key, number))(group_keys)
    draws = jax.vmap(jax.vmap(draw))(keys)
    if mode == "pair":
        return jax.tree.map(lambda x: jnp.concatenate([x, x[:, ::-1]], axis=1), draws)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, size) + x.shape[2:]), draws)


def mix_groups(
    key: jax.Array,
    image: jax.Array,
    target: jax.Array,
    *,
    mix_group: int,
    mix_mode: str,
    mixup: float,
    cutmix: float,
    cutmix_minmax: tuple[float, float] | None,
    mix_prob: float,
    switch_prob: float,
) -> tuple[jax.Array, jax.Array]:
    """Mixed image float32 [B, h, w, c] and target float32 [B, K].

    mix_mode 'batch': one draw per group; 'pair': one per pair of mirrored rows;
    'elem': one per row. Raises ValueError when B is not a multiple of mix_group.
    """
    batch, height, width, _ = image.shape
    if batch % mix_group or mix_group % 2:
        raise ValueError(
            f"mix_group {mix_group} must be even and divide the batch of {batch}; "
            f"resolve_mix_group({batch}) gives {resolve_mix_group(batch)}"
        )

    def draw(draw_key: jax.Array) -> MixDraw:
        return draw_mix(
            draw_key,
            height,
            width,
            mixup=mixup,
            cutmix=cutmix,
            cutmix_minmax=cutmix_minmax,
            mix_prob=mix_prob,
            switch_prob=switch_prob,
        )

    draws = _group_draws(key, batch // mix_group, mix_group, mix_mode, draw)
    lam, cut, box = (x.reshape((batch,) + x.shape[2:]) for x in draws)
    row = jnp.arange(height)[None, :, None, None]
    column = jnp.arange(width)[None, None, :, None]
    top, bottom, left, right = (box[:, i, None, None, None] for i in range(4))
    in_box = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    cut = cut[:, None, None, None]
    own_share = jnp.where(cut, 1.0 - in_box.astype(jnp.float32), lam[:, None, None, None])

    def mirrored(x: jax.Array) -> jax.Array:
        return x.reshape((-1, mix_group) + x.shape[1:])[:, ::-1].reshape(x.shape)

    image = image * own_share + mirrored(image) * (1.0 - own_share)
    lam = lam[:, None]
    return image, target * lam + mirrored(target) * (1.0 - lam)
