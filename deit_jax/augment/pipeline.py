"""The training augmentation, composed from its stages, and the evaluation transform."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import builders
from deit_jax.augment import random_bits
from deit_jax.augment.colors import make_color
from deit_jax.augment.crop import center_crop_axes, make_crop
from deit_jax.augment.erasing import make_erasing
from deit_jax.augment.lighting import make_lighting
from deit_jax.augment.mix import make_mix, make_target
from deit_jax.augment.normalize import IMAGENET_MEAN, IMAGENET_STD, make_normalize, normalize
from deit_jax.augment.resample import check_matmul, resample
from deit_jax.augment.stage import Supplied
from deit_jax.distributed.exchange import make_exchange
from deit_jax.errors import ConfigError
from deit_jax.rng import row_keys

Batch = dict[str, jax.Array]

# Factories by the name of their stage, in the order in which they run; each is called with a
# `Supplied` and its own options and returns None when it is off.
# (draw, pixels uint8 [n, s, s, 3]) -> pixels; each row for itself. The crop makes the pixels.
PIXEL_STAGES = {"crop": make_crop, "color": make_color}
# (draw, image float32 [n, s, s, 3]) -> image; each row for itself. The first normalizes uint8.
IMAGE_STAGES = {"normalize": make_normalize, "lighting": make_lighting, "erasing": make_erasing}
# (draw, image float32 [B, s, s, 3], target float32 [B, K]) -> image, target; the whole batch.
# The first makes the targets of labels.
BATCH_STAGES = {"target": make_target, "mix": make_mix}


@builders.composes(PIXEL_STAGES, IMAGE_STAGES, BATCH_STAGES)
def make_augment(supplied: Supplied, **options: Any) -> Callable[[jax.Array, Batch], Batch]:
    """DeiT's training augmentation `augment(key, batch)`, a pure function to be jitted.

    Args:
      supplied: facts of the run. With a mesh the work of a row stays on its device, and every
        bit is the same as without.
      options: those of the stages; the defaults are DeiT's (arXiv 2012.12877, Table 9).

    Returns:
      (key, batch) -> image float32 [B, image_size, image_size, 3], target float32
      [B, num_classes] (smoothed and mixed) and label int32 [B], from a batch with canvas uint8
      [n, C, C, 3], size int32 [n, 2], label int32 [n] and, with repeated augmentation,
      canvas_index int32 [B], the canvas of each row, of at most `supplied.repeats` rows each, and
      one of `supplied.canvas_orders` where these are given (of any other the images are NaN). What
      row i draws depends on (key, i) alone.

    Raises:
      ConfigError: an option is out of range or unknown.
    """
    pixels, images, batches = _make_stages(supplied, options)
    row_stages = pixels | images
    crop = row_stages.pop("crop")
    copies = supplied.repeats
    exchange = functools.partial(_to_rows, supplied)

    def crops(keys: jax.Array, canvas: jax.Array, size: jax.Array) -> jax.Array:
        with jax.named_scope("crop"):
            return crop(functools.partial(random_bits.named, keys), canvas, size)

    def image_rows(keys: jax.Array, image: jax.Array) -> jax.Array:
        draw = functools.partial(random_bits.named, keys)
        for name, stage in row_stages.items():
            with jax.named_scope(name):
                image = stage(draw, image)
        return image

    crops_by_rows, images_by_rows = (_by_rows(f, supplied.mesh) for f in (crops, image_rows))

    # Names of stages are what profiles and `benchmarks/programs.py` know a program's parts by.
    @jax.named_scope("augment")
    def augment(key: jax.Array, batch: Batch) -> Batch:
        canvas, size, label = batch["canvas"], batch["size"], batch["label"]
        rows_key, batch_key = jax.random.split(key)
        if "canvas_index" not in batch:
            keys = row_keys(rows_key, len(label))
            image, known = crops_by_rows(keys, canvas, size), jnp.bool_(True)
        else:
            # Crops are made where their canvas is, and each goes to the device of its row: a fifth
            # of the canvas.
            label = label[batch["canvas_index"]]
            if copies * len(canvas) < len(label):
                raise ValueError(f"{len(label)} rows of {len(canvas)} canvases, repeats={copies}")
            keys = row_keys(rows_key, len(label))
            place = _places(batch["canvas_index"], copies)
            row = jnp.zeros(copies * len(canvas), jnp.int32).at[place].set(jnp.arange(len(label)))
            image = crops_by_rows(keys[row], canvas, size)
            with jax.named_scope("exchange"):
                image, known = exchange(image, batch["canvas_index"], place)
        image = images_by_rows(keys, image)
        image = jnp.where(known, image, jnp.nan)
        target = label
        for name, stage in batches.items():
            draw = functools.partial(random_bits.named, batch_key)
            with jax.named_scope(name):
                image, target = stage(draw, image, target)
        return {"image": image, "target": target, "label": label}

    return augment


def _by_rows(function: Callable, mesh: jax.sharding.Mesh | None) -> Callable:
    """`function` of arrays whose rows stay on their device."""
    if mesh is None:
        return function
    spec = jax.sharding.PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def _places(canvas_index: Any, copies: int, numpy: Any = jnp) -> Any:
    """Of each row the place of its crop among `copies` of every canvas, int32 [B]."""
    same = canvas_index[:, None] == canvas_index[None]
    return copies * canvas_index + numpy.tril(same, -1).sum(1, dtype=numpy.int32)


def _to_rows(
    supplied: Supplied, image: jax.Array, canvas_index: jax.Array, place: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`image[place]`, and whether it is: False of a canvas_index that is none of the orders."""
    orders, mesh = supplied.canvas_orders, supplied.mesh
    if orders is None or mesh is None or mesh.size == 1:
        return image[place], jnp.bool_(True)
    places = np.stack([_places(order, supplied.repeats, np) for order in orders])
    found = (jnp.asarray(orders) == canvas_index[None]).all(1)
    move = make_exchange(mesh, places, len(image))
    return move(image, jnp.argmax(found)), found.any()


def _make_stages(supplied: Supplied, options: Mapping[str, Any]) -> list[dict[str, Callable]]:
    """The stages that are on, by name, for each of the three tables."""
    unknown = set(options) - set(builders.options(make_augment, options))
    if unknown:
        raise TypeError(f"no stage of the augmentation takes {', '.join(sorted(unknown))}")
    tables = []
    for table in (PIXEL_STAGES, IMAGE_STAGES, BATCH_STAGES):
        stages = {name: builders.bind(make, options)(supplied) for name, make in table.items()}
        tables.append({name: stage for name, stage in stages.items() if stage is not None})
    return tables


class Described(NamedTuple):
    """One stage that is on."""

    name: str  # in its table
    texts: list[str]  # what it does, what its options choose, and what they amount to
    # Without those that are None, False, 0 or empty and without lists of names left at their
    # default; one that several stages take is listed with the last.
    options: dict[str, Any]


def describe(supplied: Supplied, options: Mapping[str, Any]) -> list[Described]:
    """The stages of `make_augment` that are on, in the order in which they run."""
    makers = PIXEL_STAGES | IMAGE_STAGES | BATCH_STAGES
    on = {name: stage for table in _make_stages(supplied, options) for name, stage in table.items()}
    known = {name: builders.options(makers[name], options) for name in on}
    owner = {key: name for name in on for key in known[name]}
    described = []
    for name, stage in on.items():
        used = {}
        for key, option in known[name].items():
            value = options.get(key, option.default)
            names = isinstance(value, tuple) and isinstance(next(iter(value), 0), str)
            if value and owner[key] == name and not (names and value == option.default):
                used[key] = value
        texts = builders.headlines(makers[name], options) + getattr(stage, "notes", [])
        described.append(Described(name, texts, used))
    return described


def make_eval_transform(
    *,
    image_size: int,
    crop_ratio: float = 0.875,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    matmul: str = "auto",
) -> Callable[[Batch], jax.Array]:
    """Evaluation transform `transform(batch)`, a pure function to be jitted.

    Resizes the short side to int(image_size / crop_ratio), crops the center and normalizes:
    canvas uint8 [n, C, C, 3] and size int32 [n, 2] of the batch give float32
    [n, image_size, image_size, 3]. DeiT's published numbers are at crop ratio 0.875,
    DeiT-III's at 1.0.

    Raises:
      ConfigError: the crop ratio is not above 0 and at most 1.
    """
    if not 0.0 < crop_ratio <= 1.0:
        raise ConfigError(f"crop_ratio must be above 0 and at most 1, not {crop_ratio}")
    short = int(image_size / crop_ratio)
    check_matmul(matmul)

    @jax.named_scope("augment/crop")
    def transform(batch: Batch) -> jax.Array:
        # Padding rows have size 0; one pixel of a zero canvas keeps them finite.
        axes = center_crop_axes(jnp.maximum(batch["size"], 1), short, image_size)
        return normalize(resample(batch["canvas"], axes, matmul=matmul), mean, std)

    return transform
