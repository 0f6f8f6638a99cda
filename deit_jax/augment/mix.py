"""Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899) and label smoothing, per mix group.

The published runs drew one lambda per process and its 64 images. Here a mix group
is `mix_group` neighboring rows of the global batch, whatever the devices are, and
a row is mixed with the mirrored row of its group (timm's `x.flip(0)`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deit_jax import builders
from deit_jax.augment import random_bits
from deit_jax.augment.stage import BatchStage, Draw, Supplied, check_range, check_share, noted
from deit_jax.errors import ConfigError, check_at_most


def resolve_mix_group(
    batch_size: int,
    repeats: int,
    *,
    mixup: float,
    cutmix: float,
    cutmix_minmax: tuple[float, float] | None,
    mix_prob: float,
    mix_group: int | None,
    mix_group_limit: int,
) -> int | None:
    """Rows that share a mix under the options of `make_mix`, None when nothing is mixed.

    Raises:
      ConfigError: no group or not this one is possible; the message names those that are.
    """
    if mix_prob == 0 or not (mixup or cutmix or cutmix_minmax):
        return None
    known = [g for g in range(2, batch_size + 1, 2) if batch_size % g == 0]
    need = f"an even divisor of the batch of {batch_size}"
    if not known:
        raise ConfigError(
            f"mixup and cutmix need a mix group, {need}, and there is none; use an even batch, "
            "or mixup=0 and cutmix=0"
        )
    if mix_group is None:
        if mix_group_limit < 2:
            raise ConfigError(f"mix_group_limit must be at least 2, not {mix_group_limit}")
        apart = (g for g in known if g <= mix_group_limit and batch_size // g >= repeats)
        return max(apart, default=2)
    if mix_group not in known:
        raise ConfigError(f"mix_group {mix_group} is not {need}; known: {known}")
    return mix_group


class MixDraw(NamedTuple):
    """One mix: weight `lam` of the row itself, box (top, bottom, left, right) when cutting."""

    lam: jax.Array  # float32 [], corrected for the box's area
    cut: jax.Array  # bool []
    box: jax.Array  # int32 [4]


def _cut_box(word: jax.Array, lam: jax.Array, height: int, width: int) -> jax.Array:
    """timm 0.3.2's `rand_bbox`: sides int(side * sqrt(1 - lam)), uniform center, clipped.

    word: uint32 [4], of which two are used. (Later timm adds the odd pixel of a
    side; the published runs did not.)
    """
    ratio = jnp.sqrt(1.0 - lam)
    edges = []
    for i, side in enumerate((height, width)):
        half = jnp.floor(side * ratio).astype(jnp.int32) // 2
        center = random_bits.integer(word[i], jnp.int32(side - 1))
        edges += [jnp.maximum(center - half, 0), jnp.minimum(center + half, side)]
    return jnp.stack(edges)


def _cut_box_minmax(
    word: jax.Array, minmax: tuple[float, float], height: int, width: int
) -> jax.Array:
    """timm 0.3.2's `rand_bbox_minmax`: each side uniform between two shares of the image's.

    Both ends of its ranges are exclusive at the top, so that a box never touches the lower or the
    right border. (Later timm lets it; `_cut_box` is 0.3.2's too.)
    """
    edges = []
    for i, side in enumerate((height, width)):
        low, high = int(side * minmax[0]), int(side * minmax[1])
        length = low + random_bits.integer(word[i], jnp.int32(max(high - low - 1, 0)))
        start = random_bits.integer(word[2 + i], jnp.maximum(side - length - 1, 0))
        edges += [start, start + length]
    return jnp.stack(edges)


def cutmix_share(mixup: float, cutmix: float, switch_prob: float) -> float:
    """How many of the mixes are CutMix; the others are mixup."""
    return (switch_prob if mixup > 0 else 1.0) if cutmix > 0 else 0.0


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
    words_key, beta_key = jax.random.split(key)
    word = jax.random.bits(words_key, (8,))
    cut = random_bits.chance(word[0], cutmix_share(mixup, cutmix, switch_prob))

    def beta(alpha: float) -> jax.Array:
        if alpha in (0, 1):
            return random_bits.unit(word[1]) if alpha else jnp.float32(1.0)
        return jax.random.beta(beta_key, alpha, alpha)

    # Only one of the two lambdas is used, so they may share their randomness.
    mixup_lam, cut_lam = beta(mixup), beta(cutmix)
    if cutmix_minmax is None:
        box = _cut_box(word[2:6], cut_lam, height, width)
    else:
        box = _cut_box_minmax(word[2:6], cutmix_minmax, height, width)
    cut_area = (box[1] - box[0]) * (box[3] - box[2])
    lam = jnp.where(cut, 1.0 - cut_area / jnp.float32(height * width), mixup_lam)
    mixes = random_bits.chance(word[6], mix_prob)
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


def draw_per_group(one: Callable, key: jax.Array, size: int) -> MixDraw:
    """One draw for each group."""
    drawn = jax.vmap(one)(jax.random.split(key, 1))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size,) + x.shape[1:]), drawn)


def draw_per_pair(one: Callable, key: jax.Array, size: int) -> MixDraw:
    """One draw for each pair of mirrored rows."""
    drawn = jax.vmap(one)(jax.random.split(key, size // 2))
    return jax.tree.map(lambda x: jnp.concatenate([x, x[::-1]]), drawn)


def draw_per_row(one: Callable, key: jax.Array, size: int) -> MixDraw:
    """One draw for each row."""
    return jax.vmap(one)(jax.random.split(key, size))


# (one draw from a key, a group's key, its size) -> draws with leading axis [size].
MIX_MODES = {"batch": draw_per_group, "pair": draw_per_pair, "elem": draw_per_row}


def _group_draws(mode: Callable, one: Callable, groups: int, size: int, key: jax.Array) -> MixDraw:
    """Draws with leading axes [groups, size], each group's from a key of its own."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(groups))
    return jax.vmap(lambda key: mode(one, key, size))(keys)


def _mixed_by(
    drawn: MixDraw, image: jax.Array, target: jax.Array, group: int
) -> tuple[jax.Array, jax.Array]:
    """Image [B, h, w, c] and target [B, K] mixed by draws with leading axis [B]."""
    lam, cut, box = drawn
    row = jnp.arange(image.shape[1])[None, :, None, None]
    column = jnp.arange(image.shape[2])[None, None, :, None]
    top, bottom, left, right = (box[:, i, None, None, None] for i in range(4))
    in_box = (row >= top) & (row < bottom) & (column >= left) & (column < right)
    cut = cut[:, None, None, None]
    own_share = jnp.where(cut, 1.0 - in_box.astype(jnp.float32), lam[:, None, None, None])
    return (
        _weighted_sum(image, _mirrored(image, group), own_share),
        _weighted_sum(target, _mirrored(target, group), lam[:, None]),
    )


@builders.chooses(mix_mode=MIX_MODES)
def make_mix(
    supplied: Supplied,
    *,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    cutmix_minmax: tuple[float, float] | None = None,
    mix_prob: float = 1.0,
    switch_prob: float = 0.5,
    mix_mode: str = "batch",
    mix_group: int | None = None,
    mix_group_limit: int = 64,
) -> BatchStage | None:
    """Mixup and CutMix: images and targets of two rows as one.

    Args:
      mixup, cutmix: parameters alpha of the Beta distributions; 0 is off.
      cutmix_minmax: range of the box's sides as shares of the image's; turns CutMix on.
      mix_prob: share of the draws that mix at all.
      switch_prob: share of CutMix among the mixes when both are on.
      mix_mode: what shares a draw, a name of `MIX_MODES`.
      mix_group: rows that are mixed with each other, an even divisor of the batch size; with
        fewer groups than `repeats`, copies of one image share a group and may be mixed with each
        other, as on so few processes of the official code. None takes the largest one up to
        mix_group_limit that leaves at least `repeats` groups, which keeps them apart.
      mix_group_limit: what one process of the published run had: 64 for DeiT-B (16
        processes), 256 for Ti and S (4 processes).
    """
    mode = builders.choose(MIX_MODES, mix_mode, "mix_mode")
    check_share(mix_prob=mix_prob, switch_prob=switch_prob)
    if mixup < 0 or cutmix < 0:
        raise ConfigError(f"mixup and cutmix must be at least 0 (off), not {mixup} and {cutmix}")
    check_at_most(1000, mixup=mixup, cutmix=cutmix)
    if cutmix_minmax is not None:
        check_range(1, cutmix_minmax=cutmix_minmax)
        cutmix = 1.0  # As in timm: the alpha does not matter, but CutMix is on.
    kinds = {"mixup": mixup, "cutmix": cutmix, "cutmix_minmax": cutmix_minmax, "mix_prob": mix_prob}
    groups = {"mix_group": mix_group, "mix_group_limit": mix_group_limit}
    size = resolve_mix_group(supplied.batch_size, supplied.repeats, **groups, **kinds)
    if size is None:
        return None

    def mix(draw: Draw, image: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch, height, width, _ = image.shape
        if batch % size:
            raise ValueError(f"a batch of {batch} rows is not a multiple of the mix group {size}")
        one = lambda key: draw_mix(key, height, width, switch_prob=switch_prob, **kinds)
        group_draws = functools.partial(_group_draws, mode, one, batch // size, size)
        if supplied.mesh is not None:
            # Every device draws for all groups: exp and log of arrays of another
            # length may be compiled differently and end in another bit.
            spec = jax.sharding.PartitionSpec()
            group_draws = jax.shard_map(
                group_draws, mesh=supplied.mesh, in_specs=spec, out_specs=spec, check_vma=False
            )
        drawn = group_draws(draw("mix"))
        drawn = jax.tree.map(lambda x: x.reshape((batch,) + x.shape[2:]), drawn)
        return _mixed_by(drawn, image, target, size)

    what = _narrate(cutmix_share(mixup, cutmix, switch_prob), mix_prob)
    return noted(mix, what, f"{supplied.batch_size // size} groups of {size} images")


def _narrate(cutmix: float, mix_prob: float) -> str:
    """What is drawn, in words; `cutmix` is its share of the mixes."""
    shares = (("mixup", 1 - cutmix), ("CutMix", cutmix))
    text = " or ".join(f"{kind} with probability {share:g}" for kind, share in shares if share)
    return text + (f", in {mix_prob:g} of the draws" if mix_prob < 1 else "")


def make_target(supplied: Supplied, *, smoothing: float = 0.1) -> BatchStage:
    """One-hot targets.

    Args:
      smoothing: label smoothing, the share that is spread over all classes.
    """
    check_share(smoothing=smoothing)
    smoothed = lambda label: smoothed_one_hot(label, supplied.num_classes, smoothing)
    return lambda draw, image, label: (image, smoothed(label))
