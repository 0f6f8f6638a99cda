"""Evaluation from record to pixels: host canvases and the device's crop against Pillow."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from deit_jax import augment, data


@pytest.fixture(scope="module")
def photos(tfds_dir):
    return data.open_data(name="imagenet2012", data_dir=str(tfds_dir)).eval


def pillow_crop(encoded, short, size):
    """torchvision's Resize(short, BICUBIC) and CenterCrop(size)."""
    with Image.open(io.BytesIO(encoded)) as file:
        image = file.convert("RGB")
    width, height = image.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    whole = np.asarray(image.resize((width, height), Image.BICUBIC))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return whole[top : top + size, left : left + size]


def device_pixels(images):
    levels = np.asarray(images) * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-2)
    return np.round(levels).astype(np.int32)


def test_crops_of_the_photos_equal_pillow(photos):
    image_size, crop_ratio = 224, 0.875
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    transform = jax.jit(
        augment.make_eval_transform(image_size=image_size, crop_ratio=crop_ratio, **plain)
    )
    options = {"batch_size": 20, "canvas": 512, "image_size": image_size, "crop_ratio": crop_ratio}
    crops = [device_pixels(transform(b)) for b in data.eval_batches(photos, **options)]
    encoded, _ = photos.get(np.arange(len(photos)))
    expected = [pillow_crop(one, int(image_size / crop_ratio), image_size) for one in encoded]
    difference = np.abs(np.concatenate(crops) - np.stack(expected))
    assert difference.max() <= 2
    assert np.mean(difference == 0) >= 0.999


def test_crops_are_identical_on_any_number_of_devices(photos):
    transform = jax.jit(augment.make_eval_transform(image_size=64))
    options = {"batch_size": 32, "canvas": 256, "image_size": 64}
    results = []
    for count in (1, 2, 8):
        mesh = jax.make_mesh(
            (count,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count]
        )
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        with data.prefetch_to_device(
            data.eval_batches(photos, **options), lambda b, s=sharding: jax.device_put(b, s)
        ) as batches:
            results.append([np.asarray(transform(b)) for b in batches])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
