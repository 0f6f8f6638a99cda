"""Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing, per mix group.

The published runs drew one lambda per process and its 64 images. Here a mix group
is `mix_group` neighbouring rows of the global batch, whatever the devices are, and
a row is mixed with the mirrored row of its group (timm's `x.flip(0)`).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deit_jax.augment import random_bits
from deit_jax.augment.crop import check_range, check_share
from deit_jax.errors import ConfigError, unknown

MIX_MODES = ("batch", "pair", "elem")


def _group_sizes(batch_size: int, repeats: int) -> list[int]:
    return [
        g for g in range(2, batch_size + 1, 2) if batch_size % g == 0 and batch_size // g >= repeats
    ]


def resolve_mix_group(
    batch_size: int, repeats: int = 1, mix_group: int | None = None, *, mix_group_limit: int = 64
) -> int:
    """Rows per mix group.

    None takes the largest even divisor of `batch_size` up to `mix_group_limit` that
    leaves at least `repeats` groups, so that the copies of one image can lie in different
    groups. The limit is what one process of the published run had: 64 for DeiT-B (16
    processes), 256 for Ti and S (4 processes). Raises ConfigError, naming what works,
    for a size that cannot be had.
    """
    known = _group_sizes(batch_size, repeats)
    need = f"an even divisor of the batch of {batch_size} that leaves {repeats} groups or more"
    if not known:
        raise ConfigError(
            f"mixup and cutmix need a mix group, {need}, and there is none; use a batch of a "
            f"multiple of {2 * repeats}, or mixup=0 and cutmix=0"
        )
    if mix_group is None:
        fitting = [g for g in known if g <= mix_group_limit]
        if not fitting:
            raise ConfigError(f"mix_group_limit {mix_group_limit} must be at least {min(known)}")
        return max(fitting)
    if mix_group not in known:
        raise ConfigError(f"mix_group {mix_group} is not {need}; known: {known}")
    return mix_group


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixOptions:
    """Checked options of the mix, as `make_augment` names them."""

    mix_group: int
    mix_mode: str
    mixup: float
    cutmix: float
    cutmix_minmax: tuple[float, float] | None
    mix_prob: float
    switch_prob: float


def check_mix(
    *,
    mix_group: int | None,
    mix_mode: str,
    mixup: float,
    cutmix: float,
    cutmix_minmax: tuple[float, float] | None,
    mix_prob: float,
    switch_prob: float,
) -> MixOptions | None:
    """The options, None when nothing is mixed. Raises ConfigError for what makes no sense."""
    if mix_mode not in MIX_MODES:
        raise unknown("mix_mode", mix_mode, MIX_MODES)
    check_share("mix_prob", mix_prob)
    check_share("switch_prob", switch_prob)
    if mixup < 0 or cutmix < 0:
        raise ConfigError(f"mixup and cutmix are 0 (off) or more; got {mixup} and {cutmix}")
    if cutmix_minmax is not None:
        check_range("cutmix_minmax", cutmix_minmax)
        # timm: the alpha has no part in it, but CutMix is on.
        cutmix = 1.0
    if mix_prob == 0 or (mixup == 0 and cutmix == 0):
        return None
    if mix_group is None:
        raise ConfigError(
            "mixup and cutmix need mix_group; resolve_mix_group(batch_size, repeats) gives one"
        )
    return MixOptions(
        mix_group=mix_group,
        mix_mode=mix_mode,
        mixup=mixup,
        cutmix=cutmix,
        cutmix_minmax=cutmix_minmax,
        mix_prob=mix_prob,
        switch_prob=switch_prob,
    )


class MixDraw(NamedTuple):
    """One mix: weight `lam` of the row itself, box (top, bottom, left, right) when cutting."""

    lam: jax.Array  # float32 [], the box's area already taken off
    cut: jax.Array  # bool []
    box: jax.Array  # int32 [4]


def _beta(key: jax.Array, word: jax.Array, alpha: float) -> jax.Array:
    return random_bits.unit(word) if alpha == 1.0 else jax.random.beta(key, alpha, alpha)


def _cut_box(word: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """timm 0.3.2's `rand_bbox`: sides int(side * sqrt(1 - lam)), uniform centre, clipped.

    word: uint32 [4], of which two are used. (Later timm adds the odd pixel of a
    side; the published runs did not.)
    """
    ratio = jnp.sqrt(1.0 - lam)
    edges = []
    for i, side in enumerate((height, width)):
        half = jnp.floor(side * ratio).astype(jnp.int32) // 2
        centre = random_bits.integer(word[i], jnp.int32(side - 1))
        edges += [jnp.maximum(centre - half, 0), jnp.minimum(centre + half, side)]
    return jnp.stack(edges)


def _cut_box_minmax(
    word: jax.Array, minmax: tuple[float, float], height: int, width: int
) -> jax.Array:
    """timm's `rand_bbox_minmax`: each side uniform between two shares of the image's."""
    edges = []
    for i, side in enumerate((height, width)):
        low, high = int(side * minmax[0]), int(side * minmax[1])
        length = low + random_bits.integer(word[i], jnp.int32(max(high - low - 1, 0)))
        start = random_bits.integer(word[2 + i], side - length)
        edges += [start, start + length]
    return jnp.stack(edges)


def draw_mix(key: jax.Array, height: int, width: int, options: MixOptions) -> MixDraw:
    """Whether, how and how much to mix: timm's `Mixup._params_per_batch` with corrected lambda."""
    words_key, beta_key = jax.random.split(key)
    word = jax.random.bits(words_key, (8,))
    mixup, cutmix = options.mixup, options.cutmix
    cut_prob = (options.switch_prob if mixup > 0 else 1.0) if cutmix > 0 else 0.0
    cut = random_bits.chance(word[0], cut_prob)
    # Only one of the two lambdas is used, so they may share their randomness.
    mixup_lam = _beta(beta_key, word[1], mixup) if mixup > 0 else jnp.float32(1.0)
    cut_lam = _beta(beta_key, word[1], cutmix) if cutmix > 0 else jnp.float32(1.0)
    if options.cutmix_minmax is None:
        box = _cut_box(word[2:6], cut_lam, height, width)
    else:
        box = _cut_box_minmax(word[2:6], options.cutmix_minmax, height, width)
    cut_area = (box[1] - box[0]) * (box[3] - box[2])
    lam = jnp.where(cut, 1.0 - cut_area / jnp.float32(height * width), mixup_lam)
    mixes = random_bits.chance(word[6], options.mix_prob)
    return MixDraw(jnp.where(mixes, lam, 1.0), cut & mixes, box)


def smoothed_one_hot(label: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """float32 [n, num_classes]: smoothing / K everywhere, and 1 - smoothing more at the label."""
    one_hot = jax.nn.one_hot(label, num_classes, dtype=jnp.float32)
    return one_hot * (1.0 - smoothing) + smoothing / num_classes


def _mirrored(rows: jax.Array, mix_group: int) -> jax.Array:
    """Row i of a group of [B, ...] replaced by row mix_group - 1 - i."""
    return rows.reshape((-1, mix_group) + rows.shape[1:])[:, ::-1].reshape(rows.shape)


def _weighted_sum(own: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    """own * share + other * (1 - share), each product rounded before the sum.

    A compiler may round a product and the sum once (FMA) in the program for one
    device and twice in that for eight. Adding the sign bit of the share, 0 but
    unknown to the compiler, to the products' bits keeps the two apart.
    """
    zero = jax.lax.bitcast_convert_type(share, jnp.int32) >> 31

    def rounded(product: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(product, jnp.int32) + zero
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    return rounded(own * share) + rounded(other * (1.0 - share))


def group_draws(
    key: jax.Array, groups: int, height: int, width: int, options: MixOptions
) -> MixDraw:
    """Draws with leading axes [groups, mix_group]: one for the group, for each pair or each row."""
    size = options.mix_group
    group_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(groups))
    number = {"batch": 1, "pair": size // 2, "elem": size}[options.mix_mode]
    keys = jax.vmap(lambda group_key: jax.random.split(group_key, number))(group_keys)
    drawn = jax.vmap(jax.vmap(lambda one: draw_mix(one, height, width, options)))(keys)
    if options.mix_mode == "pair":
        return jax.tree.map(lambda x: jnp.concatenate([x, x[:, ::-1]], axis=1), drawn)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (groups, size) + x.shape[2:]), drawn)


def mix_groups(
    key: jax.Array,
    image: jax.Array,
    target: jax.Array,
    *,
    options: MixOptions,
    mesh: jax.sharding.Mesh | None,
) -> tuple[jax.Array, jax.Array]:
    """Mixed image float32 [B, h, w, c] and target float32 [B, K].

    mix_mode 'batch': one draw per group; 'pair': one per pair of mirrored rows;
    'elem': one per row. Raises ConfigError when B is not a multiple of mix_group.
    """
    batch, height, width, _ = image.shape
    mix_group = options.mix_group
    if batch % mix_group or mix_group % 2:
        raise ConfigError(
            f"mix_group {mix_group} must be even and divide the batch of {batch}; "
            f"resolve_mix_group({batch}) gives {resolve_mix_group(batch)}"
        )
    draw = functools.partial(
        group_draws, groups=batch // mix_group, height=height, width=width, options=options
    )
    if mesh is not None:
        # Every device draws for all groups: exp and log of arrays of another
        # length may be compiled differently and end in another bit.
        spec = jax.sharding.PartitionSpec()
        draw = jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    lam, cut, box = (x.reshape((batch,) + x.shape[2:]) for x in draw(key))
    row = jnp.arange(height)[None, :, None, None]
    column = jnp.arange(width)[None, None, :, None]
    top, bottom, left, right = (box[:, i, None, None, None] for i in range(4))
    in_box = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    cut = cut[:, None, None, None]
    own_share = jnp.where(cut, 1.0 - in_box.astype(jnp.float32), lam[:, None, None, None])
    mirrored = functools.partial(_mirrored, mix_group=mix_group)
    return (
        _weighted_sum(image, mirrored(image), own_share),
        _weighted_sum(target, mirrored(target), lam[:, None]),
    )
