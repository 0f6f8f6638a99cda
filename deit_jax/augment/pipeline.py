"""The training augmentation and the evaluation transform, built from a recipe's options."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from deit_jax.augment.crop import centre_crop_axes, flipped, training_axes
from deit_jax.augment.erasing import ERASING_MODES, random_erasing
from deit_jax.augment.mix import MIX_MODES, mix_groups, smoothed_one_hot
from deit_jax.augment.resample import FILTERS, resample, resolve_matmul
from deit_jax.rng import row_keys

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CROPS = ("rrc", "src", "center", "resize")

# Numbers of the draws within a row's key: part of a run's identity.
CROP_DRAW, FLIP_DRAW, ERASE_DRAW, OPS_DRAW = range(4)


def normalise(image: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """uint8 [n, h, w, 3] to float32: (image / 255 - mean) / std."""
    mean = jnp.asarray(mean, jnp.float32)[None, None, None]
    std = jnp.asarray(std, jnp.float32)[None, None, None]
    return (image.astype(jnp.float32) / 255.0 - mean) / std


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


def _share(what: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} is a probability or share in [0, 1]; got {value}")


def make_augment(
    *,
    image_size: int,
    num_classes: int,
    mix_group: int | None = None,
    crop: str = "rrc",
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
    hflip: float = 0.5,
    vflip: float = 0.0,
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
) -> Callable[[jax.Array, dict[str, jax.Array]], dict[str, jax.Array]]:
    """DeiT's training augmentation `augment(key, batch)`, a pure function to be jitted.

    batch: canvas uint8 [n, C, C, 3], size int32 [n, 2], label int32 [n], and with
    repeated augmentation source int32 [B], the canvas of each row. Gives image
    float32 [B, image_size, image_size, 3], target float32 [B, num_classes] (smoothed
    and mixed) and label int32 [B]. What row i draws depends on (key, i) alone.

    crop: 'rrc' (RandomResizedCrop of `scale` and `ratio`), 'src' (DeiT-III's simple
    random crop), 'center' (short side to image_size, then the centre) or 'resize'
    (the whole image, squashed). mixup, cutmix: the alphas, 0 is off; `mix_group`:
    rows that share a mix, see `resolve_mix_group`, needed when mixing.

    Defaults are DeiT's (arXiv 2012.12877, Table 9). Raises ValueError for options
    that make no sense.
    """
    _one_of("crop", crop, CROPS)
    _one_of("interpolation", interpolation, tuple(FILTERS))
    _one_of("erasing_mode", erasing_mode, ERASING_MODES)
    _one_of("mix_mode", mix_mode, MIX_MODES)
    for what, value in [
        ("hflip", hflip),
        ("vflip", vflip),
        ("erasing_prob", erasing_prob),
        ("mix_prob", mix_prob),
        ("switch_prob", switch_prob),
        ("smoothing", smoothing),
    ]:
        _share(what, value)
    mixing = mix_prob > 0 and (mixup > 0 or cutmix > 0 or cutmix_minmax is not None)
    if mixing and mix_group is None:
        raise ValueError("mixup and cutmix need mix_group; resolve_mix_group(batch_size) gives one")
    matmul = resolve_matmul(matmul)

    def augment(key: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        canvas, size, label = batch["canvas"], batch["size"], batch["label"]
        if "source" in batch:
            canvas, size, label = (x[batch["source"]] for x in (canvas, size, label))
        rows_key, mix_key = jax.random.split(key)
        rows = row_keys(rows_key, len(label))

        def draw_keys(number: int) -> jax.Array:
            return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rows, number)

        down, across = training_axes(
            draw_keys(CROP_DRAW), size, image_size, crop=crop, scale=scale, ratio=ratio
        )
        if hflip > 0 or vflip > 0:
            coins = jax.vmap(lambda k: jax.random.uniform(k, (2,)))(draw_keys(FLIP_DRAW))
            across, down = flipped(across, coins[:, 0] < hflip), flipped(down, coins[:, 1] < vflip)
        pixels = resample(canvas, down, across, interpolation=interpolation, matmul=matmul)
        image = normalise(pixels, mean, std)
        if erasing_prob > 0:
            image = random_erasing(
                draw_keys(ERASE_DRAW),
                image,
                prob=erasing_prob,
                mode=erasing_mode,
                max_count=erasing_count,
            )
        target = smoothed_one_hot(label, num_classes, smoothing)
        if mixing:
            image, target = mix_groups(
                mix_key,
                image,
                target,
                mix_group=mix_group,
                mix_mode=mix_mode,
                mixup=mixup,
                cutmix=cutmix,
                cutmix_minmax=cutmix_minmax,
                mix_prob=mix_prob,
                switch_prob=switch_prob,
            )
        return {"image": image, "target": target, "label": label}

    return augment


def make_eval_transform(
    *,
    image_size: int,
    crop_ratio: float = 0.875,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    interpolation: str = "bicubic",
    matmul: str = "auto",
) -> Callable[[dict[str, jax.Array]], jax.Array]:
    """Evaluation transform `transform(batch)`, a pure function to be jitted.

    Resizes the short side to int(image_size / crop_ratio), crops the centre and
    normalises: canvas uint8 [n, C, C, 3] and size int32 [n, 2] of the batch give
    float32 [n, image_size, image_size, 3]. DeiT's published numbers are at crop
    ratio 0.875, DeiT-III's at 1.0.
    """
    _one_of("interpolation", interpolation, tuple(FILTERS))
    if not 0.0 < crop_ratio <= 1.0:
        raise ValueError(f"crop_ratio is in (0, 1]; got {crop_ratio}")
    short = int(image_size / crop_ratio)
    matmul = resolve_matmul(matmul)

    def transform(batch: dict[str, jax.Array]) -> jax.Array:
        # Padding rows have size 0; one pixel of a zero canvas keeps them finite.
        size = jnp.maximum(batch["size"], 1)
        rows, columns = centre_crop_axes(size, short, image_size)
        pixels = resample(
            batch["canvas"], rows, columns, interpolation=interpolation, matmul=matmul
        )
        return normalise(pixels, mean, std)

    return transform
