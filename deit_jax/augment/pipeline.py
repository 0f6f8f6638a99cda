"""The training augmentation and the evaluation transform, built from a recipe's options."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from deit_jax.augment import random_bits
from deit_jax.augment.crop import centre_crop_axes, check_crop, check_share, flipped, training_axes
from deit_jax.augment.erasing import check_erasing, random_erasing
from deit_jax.augment.mix import MixOptions, check_mix, mix_groups, smoothed_one_hot
from deit_jax.augment.policies import Policy, parse
from deit_jax.augment.policies import auto_augment as apply_policy
from deit_jax.augment.resample import resample, resolve_matmul
from deit_jax.augment.three_augment import color_jitter as apply_color_jitter
from deit_jax.augment.three_augment import three_augment as apply_three_augment
from deit_jax.errors import ConfigError
from deit_jax.rng import row_keys

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Numbers of the draws within a row's key: part of a run's identity.
CROP_DRAW, FLIP_DRAW, ERASE_DRAW, OPERATIONS_DRAW, JITTER_DRAW = range(5)

Batch = dict[str, jax.Array]


def normalise(image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 [n, h, w, 3] to float32: (image / 255 - mean) / std."""
    mean = jnp.asarray(mean, jnp.float32)[None, None, None]
    std = jnp.asarray(std, jnp.float32)[None, None, None]
    return (image.astype(jnp.float32) / 255.0 - mean) / std


def fill_color(mean: tuple[float, ...]) -> tuple[int, int, int]:
    """What timm fills the outside of a warped image with: the mean as uint8 levels."""
    return tuple(min(255, round(255 * x)) for x in mean)


def draw_keys(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def cropped(
    keys: jax.Array,
    canvas: jax.Array,
    size: jax.Array,
    *,
    image_size: int,
    crop: str,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    hflip: float,
    vflip: float,
    matmul: str,
) -> jax.Array:
    """Cropped, resized and flipped uint8 [n, image_size, image_size, 3]."""
    rows, columns = training_axes(
        draw_keys(keys, CROP_DRAW), size, image_size, crop=crop, scale=scale, ratio=ratio
    )
    if hflip > 0 or vflip > 0:
        coins = random_bits.words(draw_keys(keys, FLIP_DRAW), 2)
        columns = flipped(columns, random_bits.chance(coins[:, 0], hflip))
        rows = flipped(rows, random_bits.chance(coins[:, 1], vflip))
    return resample(canvas, rows, columns, matmul=matmul)


def colored(
    keys: jax.Array,
    pixels: jax.Array,
    *,
    policy: Policy | None,
    three_augment: bool,
    color_jitter: float,
    fill: tuple[int, int, int],
) -> jax.Array:
    """RandAugment or AutoAugment, or 3-Augment and colour jitter, of uint8 [n, s, s, 3]."""
    if policy is not None:
        return apply_policy(draw_keys(keys, OPERATIONS_DRAW), pixels, policy=policy, fill=fill)
    if three_augment:
        pixels = apply_three_augment(draw_keys(keys, OPERATIONS_DRAW), pixels)
    if color_jitter > 0:
        keys = draw_keys(keys, JITTER_DRAW)
        pixels = apply_color_jitter(keys, pixels, strength=color_jitter)
    return pixels


def _on_mesh(rows_fn: Callable[..., jax.Array], mesh: jax.sharding.Mesh | None) -> Callable:
    """`rows_fn(keys, canvas, size)`, device by device when there is a mesh."""
    if mesh is None:
        return rows_fn
    spec = jax.sharding.PartitionSpec(mesh.axis_names)
    return jax.shard_map(rows_fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _policy(name: str | None, three_augment: bool) -> Policy | None:
    """The parsed `auto_augment` option, None when it is off."""
    if name and three_augment:
        raise ConfigError(
            f"three_augment takes the place of RandAugment: with auto_augment={name!r} set "
            "three_augment=False, or auto_augment=None with three_augment=True"
        )
    return parse(name) if name else None


def _check_colors(
    *, color_jitter: float, smoothing: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    if color_jitter < 0:
        raise ConfigError(f"color_jitter is 0 (off) or more; got {color_jitter}")
    check_share("smoothing", smoothing)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"mean and std are 3 numbers, std above 0; got {mean} and {std}")


def make_augment(
    *,
    image_size: int,
    num_classes: int,
    mix_group: int | None = None,
    crop: str = "rrc",
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.0,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    three_augment: bool = False,
    color_jitter: float = 0.3,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    erasing_prob: float = 0.25,
    erasing_mode: str = "pixel",
    erasing_count: int = 1,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    cutmix_minmax: tuple[float, float] | None = None,
    mix_prob: float = 1.0,
    switch_prob: float = 0.5,
    mix_mode: str = "batch",
    smoothing: float = 0.1,
    matmul: str = "auto",
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[jax.Array, Batch], Batch]:
    """DeiT's training augmentation `augment(key, batch)`, a pure function to be jitted.

    batch: canvas uint8 [n, C, C, 3], size int32 [n, 2], label int32 [n], and with
    repeated augmentation canvas_index int32 [B], the canvas of each row. Gives image
    float32 [B, image_size, image_size, 3], target float32 [B, num_classes] (smoothed
    and mixed) and label int32 [B]. What row i draws depends on (key, i) alone.

    crop: 'rrc' (RandomResizedCrop of `scale` and `ratio`), 'src' (DeiT-III's simple
    random crop), 'center' (short side to image_size, then the centre) or 'resize'
    (the whole image, squashed). auto_augment: a timm string, 'rand-m9-mstd0.5-inc1'
    or such (RandAugment), or the name of an AutoAugment policy ('original', 'originalr',
    'v0', 'v0r', with '-mstd0.5' for noise); None or '' is off. color_jitter works when it
    is off, as in timm. mixup, cutmix: the alphas,
    0 is off; mix_group: rows that share a mix, see `resolve_mix_group`, needed when
    mixing. matmul: how the crop multiplies, see `resolve_matmul`. mesh: the mesh whose
    devices share the batch; keeps the work of a row on its device, changes no bit.

    Defaults are DeiT's (arXiv 2012.12877, Table 9). Raises ValueError for options
    that make no sense.
    """
    check_crop(crop=crop, scale=scale, ratio=ratio, hflip=hflip, vflip=vflip)
    _check_colors(color_jitter=color_jitter, smoothing=smoothing, mean=mean, std=std)
    check_erasing(prob=erasing_prob, mode=erasing_mode, count=erasing_count)
    policy = _policy(auto_augment, three_augment)
    mix = check_mix(
        mix_group=mix_group,
        mix_mode=mix_mode,
        mixup=mixup,
        cutmix=cutmix,
        cutmix_minmax=cutmix_minmax,
        mix_prob=mix_prob,
        switch_prob=switch_prob,
    )
    crop_fn = functools.partial(
        cropped,
        image_size=image_size,
        crop=crop,
        scale=scale,
        ratio=ratio,
        hflip=hflip,
        vflip=vflip,
        matmul=resolve_matmul(matmul),
    )
    color_fn = functools.partial(
        colored,
        policy=policy,
        three_augment=three_augment,
        color_jitter=color_jitter,
        fill=fill_color(mean),
    )

    def image_rows(keys: jax.Array, canvas: jax.Array, size: jax.Array) -> jax.Array:
        image = normalise(color_fn(keys, crop_fn(keys, canvas, size)), mean, std)
        return random_erasing(
            draw_keys(keys, ERASE_DRAW),
            image,
            prob=erasing_prob,
            mode=erasing_mode,
            max_count=erasing_count,
        )

    image_rows = _on_mesh(image_rows, mesh)
    target_rows = functools.partial(smoothed_one_hot, num_classes=num_classes, smoothing=smoothing)
    return _on_batches(image_rows, target_rows, mix, mesh)


def _on_batches(
    image_rows: Callable[..., jax.Array],
    target_rows: Callable[[jax.Array], jax.Array],
    mix: MixOptions | None,
    mesh: jax.sharding.Mesh | None,
) -> Callable[[jax.Array, Batch], Batch]:
    """`augment(key, batch)` from what is done to rows and what mixes them."""

    def augment(key: jax.Array, batch: Batch) -> Batch:
        canvas, size, label = batch["canvas"], batch["size"], batch["label"]
        if "canvas_index" in batch:
            canvas, size, label = (x[batch["canvas_index"]] for x in (canvas, size, label))
        rows_key, mix_key = jax.random.split(key)
        image = image_rows(row_keys(rows_key, len(label)), canvas, size)
        target = target_rows(label)
        if mix is not None:
            image, target = mix_groups(mix_key, image, target, options=mix, mesh=mesh)
        return {"image": image, "target": target, "label": label}

    return augment


def make_eval_transform(
    *,
    image_size: int,
    crop_ratio: float = 0.875,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    matmul: str = "auto",
) -> Callable[[Batch], jax.Array]:
    """Evaluation transform `transform(batch)`, a pure function to be jitted.

    Resizes the short side to int(image_size / crop_ratio), crops the centre and
    normalises: canvas uint8 [n, C, C, 3] and size int32 [n, 2] of the batch give
    float32 [n, image_size, image_size, 3]. DeiT's published numbers are at crop
    ratio 0.875, DeiT-III's at 1.0.
    """
    if not 0.0 < crop_ratio <= 1.0:
        raise ConfigError(f"crop_ratio is in (0, 1]; got {crop_ratio}")
    short = int(image_size / crop_ratio)
    matmul = resolve_matmul(matmul)

    def transform(batch: Batch) -> jax.Array:
        # Padding rows have size 0; one pixel of a zero canvas keeps them finite.
        rows, columns = centre_crop_axes(jnp.maximum(batch["size"], 1), short, image_size)
        return normalise(resample(batch["canvas"], rows, columns, matmul=matmul), mean, std)

    return transform
