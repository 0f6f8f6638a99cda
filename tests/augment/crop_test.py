"""Crops and resizes against torchvision and Pillow, on drawn images and, if present, on photos."""

import functools
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import crop, make_eval_transform, random_bits
from deit_jax.augment.resample import MATMULS, check_matmul, resample
from deit_jax.errors import ConfigError

LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


@pytest.fixture(scope="module")
def stored(vectors):
    with np.load(vectors / "augment_crops.npz") as stored:
        return {
            name: stored[name].astype(np.int32) if name in ("size", "box") else stored[name]
            for name in stored
        }


def assert_like_pillow(got, expected):
    """The tolerance of the resize: 99.9 % of the pixels equal, none more than two levels off."""
    difference = np.abs(np.asarray(got).astype(int) - expected)
    assert (difference > 0).mean() < 1e-3
    assert difference.max() <= 2


def resized(image, box, matmul="float32"):
    run = jax.jit(lambda image, box: resample(image, crop.box_axes(box, 24), matmul=matmul))
    return np.asarray(run(image, box))


def test_crops_equal_pillow_whatever_multiplies(stored):
    crops = [resized(stored["image"], stored["box"], matmul) for matmul in MATMULS]
    assert_like_pillow(crops[0], stored["crop"])
    for other in crops[1:]:
        np.testing.assert_array_equal(other, crops[0])


def test_a_crop_does_not_depend_on_the_size_of_batch_and_canvas(stored):
    crops = resized(stored["image"], stored["box"])
    wider = np.pad(stored["image"], ((0, 0), (0, 19), (0, 7), (0, 0)))
    np.testing.assert_array_equal(resized(wider, stored["box"]), crops)
    np.testing.assert_array_equal(resized(stored["image"][3:5], stored["box"][3:5]), crops[3:5])


def test_a_flip_mirrors_the_same_pixels(stored):
    axes = crop.box_axes(jnp.asarray(stored["box"]), 24)
    flip = jnp.arange(len(stored["box"])) % 2 == 0
    flip = jnp.stack([jnp.zeros_like(flip), flip], axis=1)
    plain, flipped = (
        np.asarray(resample(stored["image"], axes, matmul="float32"))
        for axes in (axes, crop.flipped(axes, flip))
    )
    np.testing.assert_array_equal(flipped[::2], plain[::2, :, ::-1])
    np.testing.assert_array_equal(flipped[1::2], plain[1::2])


def test_evaluation_equals_torchvision(stored):
    transform = jax.jit(
        make_eval_transform(image_size=24, crop_ratio=0.875, **LEVELS, matmul="float32")
    )
    got = np.asarray(transform({"canvas": stored["image"], "size": stored["size"]}))
    assert_like_pillow(np.round(got), stored["eval"])


@pytest.mark.parametrize(
    "size,ratio,short", [(224, 0.875, 256), (384, 0.875, 438), (224, 1.0, 224)]
)
def test_evaluation_resizes_to_the_published_sides(monkeypatch, size, ratio, short):
    seen = {}
    from deit_jax.augment import pipeline

    def spy(sizes, resized, out):
        seen.update(short=resized, out=out)
        return crop.center_crop_axes(sizes, resized, out)

    monkeypatch.setattr(pipeline, "center_crop_axes", spy)
    transform = make_eval_transform(image_size=size, crop_ratio=ratio)
    batch = {"canvas": jnp.zeros((1, 8, 8, 3), jnp.uint8), "size": jnp.full((1, 2), 8)}
    assert jax.eval_shape(transform, batch).shape == (1, size, size, 3)
    assert seen == {"short": short, "out": size}


def test_padding_rows_stay_finite():
    transform = make_eval_transform(image_size=8, matmul="float32")
    batch = {"canvas": np.zeros((2, 8, 8, 3), np.uint8), "size": np.zeros((2, 2), np.int32)}
    assert np.isfinite(transform(batch)).all()


def test_center_crop_rounds_half_to_even_and_pads_with_black():
    size = jnp.array([[24, 24 + margin] for margin in range(6)])
    offsets = crop.center_crop_axes(size, 24, 24).position[:, 1, 0]
    np.testing.assert_array_equal(offsets, [round(margin / 2) for margin in range(6)])
    white = np.full((1, 20, 20, 3), 255, np.uint8)
    axes = crop.center_crop_axes(jnp.array([[20, 20]]), 20, 24)
    got = np.asarray(resample(white, axes, matmul="float32"))[0]
    assert (got[2:22, 2:22] == 255).all()
    assert not got[:2].any() and not got[:, 22:].any()


def test_simple_random_crop_equals_torchvision(stored, monkeypatch):
    offsets = jnp.asarray(stored["offset"], jnp.int32)
    seen = {}

    def integer(words, high):
        seen["high"] = high
        return offsets

    monkeypatch.setattr(random_bits, "integer", integer)
    keys = jax.random.split(jax.random.key(0), len(offsets))
    size = jnp.asarray(stored["size"])
    axes = crop.simple_random_crop(24)(keys, size)
    assert_like_pillow(resample(stored["image"], axes, matmul="float32"), stored["src"])
    # torchvision draws offsets from 0 to the padded size minus the crop, both ends in.
    np.testing.assert_array_equal(seen["high"], crop.short_side_resized(size, 24) + 8 - 24)


@pytest.mark.parametrize("name", crop.CROPS)
def test_small_images_on_small_canvases(name):
    canvas = np.zeros((3, 32, 32, 3), np.uint8)
    canvas[:, :8, :8] = 200
    keys, size = jax.random.split(jax.random.key(0), 3), jnp.full((3, 2), 8)
    got = resample(canvas, crop.CROPS[name](32)(keys, size), matmul="float32")
    # Nothing but the image's own pixels can reach the crop.
    np.testing.assert_array_equal(got, np.full((3, 32, 32, 3), 200))


def test_matmul_is_named_or_chosen_where_the_program_runs():
    axes = crop.box_axes(jnp.array([[0, 0, 8, 8]]), 4)
    program = jax.jit(functools.partial(resample, matmul="auto")).trace(
        jnp.zeros((1, 8, 8, 3), jnp.uint8), axes
    )
    kinds = {
        platform: set(re.findall(r"dot_general.*?tensor<[\dx]+x(\w+)>", text))
        for platform in ("cpu", "cuda", "tpu")
        for text in [program.lower(lowering_platforms=(platform,)).as_text()]
    }
    assert kinds == {"cpu": {"f32"}, "cuda": {"f16"}, "tpu": {"bf16"}}
    with pytest.raises(ConfigError, match="float16x2"):
        check_matmul("float8")


def photos(tfds_dir, split, count, canvas):
    """(canvas uint8 [count, canvas, canvas, 3], size int32 [count, 2], list of PIL images)."""
    tfds = pytest.importorskip("tensorflow_datasets")
    from PIL import Image

    decoders = {"image": tfds.decode.SkipDecoding()}
    data = tfds.load("imagenet2012", split=split, data_dir=tfds_dir, decoders=decoders)
    images = []
    for example in tfds.as_numpy(data):
        image = Image.open(io.BytesIO(example["image"])).convert("RGB")
        if max(image.size) <= canvas and len(images) < count:
            images.append(image)
    canvases = np.zeros((len(images), canvas, canvas, 3), np.uint8)
    for row, image in zip(canvases, images, strict=True):
        row[: image.height, : image.width] = np.asarray(image)
    size = np.array([(image.height, image.width) for image in images], np.int32)
    return canvases, size, images


def test_evaluation_and_crops_of_photos_equal_pillow(tfds_dir):
    from PIL import Image

    canvas, size, images = photos(tfds_dir, "validation", 12, 512)
    transform = jax.jit(make_eval_transform(image_size=224, **LEVELS, matmul="float32"))
    expected = []
    for image in images:
        width, height = image.size
        short = min(width, height)
        resized = image.resize((256 * width // short, 256 * height // short), Image.BICUBIC)
        left, top = (round((side - 224) / 2) for side in resized.size)
        expected.append(np.asarray(resized.crop((left, top, left + 224, top + 224))))
    got = transform({"canvas": canvas, "size": size})
    assert_like_pillow(np.round(got), np.stack(expected))

    words = random_bits.words(jax.random.split(jax.random.key(0), len(images)), 22)
    box = functools.partial(crop.random_resized_box, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    boxes = np.asarray(jax.vmap(box)(words, jnp.asarray(size)))
    run = jax.jit(lambda image, box: resample(image, crop.box_axes(box, 224), matmul="float32"))
    expected = [
        image.crop((left, top, left + width, top + height)).resize((224, 224), Image.BICUBIC)
        for image, (top, left, height, width) in zip(images, boxes.tolist(), strict=True)
    ]
    assert_like_pillow(run(canvas, boxes), np.stack([np.asarray(x) for x in expected]))
