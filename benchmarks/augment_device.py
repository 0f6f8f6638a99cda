"""Device microseconds per image of a recipe's augmentation, by stage and whole.

    python benchmarks/augment_device.py --output=augment_device.json
    python benchmarks/augment_device.py --data_dir=DIR       # photos instead of noise

Stages: crop and flip (including the gather of repeated canvases), operations (RandAugment or
the recipe's other policy), normalize and erase, mix. Each is compiled as a separate program that
reads and writes device memory; `whole` is the whole augmentation as a training step contains it,
on one device. Every case is warmed up, then measured in interleaved rounds with a new key per
call; the report has medians and spreads over the rounds. DIR is a tfds data_dir with imagenet2012
(needs TensorFlow); without it the canvases are filled with noise, in sizes typical of ImageNet.
"""

import argparse
import functools
import time
from collections.abc import Callable

import common
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import augment, builders, config, data, rng
from deit_jax.augment import normalize, pipeline, random_bits
from deit_jax.recipe import hardware
from deit_jax.train import schema
from deit_jax.train.speed import synthetic
from deit_jax.train.speed.rounds import interleave, summary

CLASSES = 1000


def photo_canvases(data_dir: str, count: int, canvas: int) -> dict[str, np.ndarray]:
    """The same with photos, read as for training."""
    photos = data.open_data(name="imagenet2012", data_dir=data_dir).train
    with data.train_batches(photos, batch_size=count, canvas=canvas) as batches:
        batch = next(batches)
    return {name: batch[name] for name in ("canvas", "size")}


def make_batch(flags: argparse.Namespace, repeats: int) -> dict[str, jax.Array]:
    """A training batch on the device, with `canvas_index` if images are repeated."""
    rows = flags.batch_size
    count = data.canvas_count(rows, repeats)
    if flags.data_dir:
        batch = photo_canvases(flags.data_dir, count, flags.canvas)
    else:
        batch = synthetic.noise_canvases(count, flags.canvas)
    batch["label"] = np.arange(count, dtype=np.int32) % CLASSES
    if repeats > 1:
        batch["canvas_index"] = (np.arange(rows) % count).astype(np.int32)
    return jax.device_put(batch)


def row_stages(supplied: augment.Supplied, options: dict) -> dict[str, Callable]:
    """The stages that treat every row alone: functions of (call number, batch or pixels)."""
    built = {
        name: builders.bind(make, options)(supplied)
        for name, make in (pipeline.PIXEL_STAGES | pipeline.IMAGE_STAGES).items()
    }

    def draw(number):
        key = jax.random.fold_in(rng.base_key(0), number)
        return functools.partial(random_bits.named, rng.row_keys(key, supplied.batch_size))

    def crop_and_flip(number, batch):
        canvas, size = batch["canvas"], batch["size"]
        if "canvas_index" in batch:
            canvas, size = canvas[batch["canvas_index"]], size[batch["canvas_index"]]
        return built["crop"](draw(number), canvas, size)

    def operations(number, pixels):
        return built["color"](draw(number), pixels) if built["color"] else pixels

    def normalize_and_erase(number, pixels):
        image = built["normalize"](draw(number), pixels)
        return built["erasing"](draw(number), image) if built["erasing"] else image

    return {
        "crop and flip": crop_and_flip,
        "operations": operations,
        "normalize and erase": normalize_and_erase,
    }


def batch_stages(supplied: augment.Supplied, options: dict) -> dict[str, Callable]:
    """`mix` (call number, image, label), unless it is off, and `whole` (call number, batch)."""
    target = builders.bind(pipeline.BATCH_STAGES["target"], options)(supplied)
    mix = builders.bind(pipeline.BATCH_STAGES["mix"], options)(supplied)
    augment_fn = augment.make_augment(supplied, **options)

    def mixed(number, image, label):
        key = jax.random.fold_in(rng.base_key(1), number)
        draw = functools.partial(random_bits.named, key)
        return mix(draw, *target(draw, image, label))

    def whole(number, batch):
        return augment_fn(jax.random.fold_in(rng.base_key(0), number), batch)

    return {"mix": mixed, "whole": whole} if mix else {"whole": whole}


def make_stages(
    supplied: augment.Supplied, options: dict, batch: dict
) -> dict[str, tuple[Callable, tuple]]:
    """Jitted stages, each with its arguments after the call number."""
    rows = supplied.batch_size
    shape = (rows, supplied.image_size, supplied.image_size, 3)
    pixels = jax.random.bits(jax.random.key(2), shape, jnp.uint8)
    image = normalize.normalize(pixels, options["mean"], options["std"])
    arrays = {
        "crop and flip": (batch,),
        "operations": (pixels,),
        "normalize and erase": (pixels,),
        "mix": (image, jnp.arange(rows) % CLASSES),
        "whole": (batch,),
    }
    stages = row_stages(supplied, options) | batch_stages(supplied, options)
    return {name: (jax.jit(stage), arrays[name]) for name, stage in stages.items()}


def run(stage: Callable, arrays: tuple, first: int, calls: int) -> float:
    """Seconds for `calls` calls, numbered from `first`."""
    start = time.perf_counter()
    for number in range(first, first + calls):
        out = stage(number, *arrays)
    jax.block_until_ready(out)
    return time.perf_counter() - start


def measure(options: dict, flags: argparse.Namespace, repeats: int) -> dict:
    """Microseconds per image of every stage for one number of repeats."""
    batch = make_batch(flags, repeats)
    supplied = augment.Supplied(flags.image_size, CLASSES, flags.batch_size, repeats)
    stages = make_stages(supplied, options, batch)
    cases, first_call = {}, {}
    for name, (stage, arrays) in stages.items():
        first_call[name] = round(run(stage, arrays, 0, 1), 2)
        run(stage, arrays, 1, flags.warmup)
        calls = iter(range(100, 10**9, flags.calls))
        scale = 1e6 / (flags.calls * flags.batch_size)
        cases[name] = lambda stage=stage, arrays=arrays, calls=calls, scale=scale: (
            scale * run(stage, arrays, next(calls), flags.calls)
        )
    rounds = interleave(cases, flags.rounds)
    return {
        "canvases": len(batch["label"]),
        "mix_group": builders.bind(augment.resolve_mix_group, options)(flags.batch_size, repeats),
        "us_per_image": {name: summary(values) for name, values in rounds.items()},
        "first_call_s": first_call,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default=str(common.ROOT / "configs" / "deit.py") + ":b")
    parser.add_argument("--data_dir", help="tfds data_dir with imagenet2012; default: noise")
    parser.add_argument("--batch_size", type=int, default=1024)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--canvas", type=int, default=512)
    parser.add_argument("--repeats", default="3,1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=20, help="calls per round")
    parser.add_argument("--warmup", type=int, default=10, help="calls before the rounds")
    parser.add_argument("--output", help="JSON file")
    flags, overrides = parser.parse_known_args()
    resolved = schema.load(flags.config, config.split_overrides(overrides))
    options = resolved.augment.to_dict()
    result = {
        "what": "device microseconds per image of the training augmentation",
        "input": "photos" if flags.data_dir else "noise",
        "settings": {
            key: getattr(flags, key)
            for key in ("batch_size", "image_size", "canvas", "rounds", "calls", "warmup")
        },
        "augment": options,
        "matmul": options["matmul"],
        "repeats": {
            repeats: measure(dict(options), flags, int(repeats))
            for repeats in flags.repeats.split(",")
        },
        "peak_memory_gib": hardware.peak_memory_gib(),
        "environment": common.environment(),
    }
    common.report(result, flags.output)


if __name__ == "__main__":
    main()
