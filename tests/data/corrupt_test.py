"""Records that cannot be used: too large, all bad, and random damage to every format."""

import os

import numpy as np
import pytest
from data.decode_test import FILES, RGB, encode
from data.exif_test import marked
from data.pipeline_test import Encoded, first_batches

from deit_jax import data


def test_images_of_too_many_pixels_are_bad_samples():
    options = {"batch_size": 80, "canvas": 48, "max_corrupt_share": 0.2, "max_pixels": 30 * 20}
    large = set(range(0, 80, 10))
    with data.train_batches(Encoded(), **options) as batches:
        assert not set(next(batches)["index"].tolist()) & large
    assert set(batches.health.corrupt_names) == large
    with data.eval_batches(Encoded(), image_size=16, **options) as batches:
        assert np.flatnonzero(~next(batches)["mask"]).tolist() == sorted(large)


def test_without_a_sound_record_nothing_is_read():
    """Whatever the share that is allowed: there is nothing to train or evaluate on."""
    damaged = Encoded(n=20, damaged=range(20))
    message = "none of the 20 records can be decoded: record"
    options = {"batch_size": 4, "canvas": 32, "max_corrupt_share": 1.0}
    with pytest.raises(data.CorruptShareExceeded, match=message):
        first_batches(data.train_batches(damaged, **options), 1)
    with pytest.raises(data.CorruptShareExceeded, match=message):
        first_batches(data.eval_batches(damaged, image_size=16, **options), 5)


def test_random_damage_gives_pixels_or_is_corrupt():
    """An end of the process is a failure. $DEIT_JAX_MUTANTS=FIRST:LAST for others than 0:1000."""
    frames = {"save_all": True, "append_images": [RGB.rotate(90)]}
    files = [
        *FILES.values(),
        encode(RGB.convert("CMYK"), "JPEG"),
        marked("JPEG", 6),
        encode(RGB, "WEBP", **frames),
    ]
    first, last = map(int, os.environ.get("DEIT_JAX_MUTANTS", "0:1000").split(":"))
    for number in range(first, last):
        rng = np.random.default_rng(number)
        content = np.frombuffer(files[number % len(files)], np.uint8).copy()
        # Headers are short, and damage to them goes further: half of the places are there.
        most = min(len(content), 64 if number % 2 else len(content))
        places = rng.integers(0, most, rng.integers(1, 5))
        content[places] = rng.integers(0, 256, len(places))
        mutant = content[: rng.integers(len(content)) if number % 5 == 0 else None].tobytes()
        try:
            decoded = data.decode_image(mutant, max_pixels=1_000_000, exif_orientation=True)
        except data.CorruptImage:
            continue
        assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3
