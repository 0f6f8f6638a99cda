"""EXIF orientation: equal to Pillow's exif_transpose, in every format, damaged or not."""

import io
import struct

import numpy as np
import pytest
from data.decode_test import RGB, encode
from data.pipeline_test import first_batches
from PIL import Image, ImageOps

from deit_jax import data
from deit_jax.data import exif

ORIENTATIONS = range(1, 9)


def marked(file_format, orientation, image=RGB, **options):
    tags = Image.Exif()
    tags[0x010F] = "a maker"
    tags[0x0112] = orientation
    return encode(image, file_format, exif=tags, **options)


def upright(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"progressive": True, "subsampling": 1}),
        ("PNG", {}),
        ("WEBP", {"quality": 80}),
    ],
)
def test_every_orientation_equals_pillow(file_format, options, orientation):
    encoded = marked(file_format, orientation, **options)
    assert exif.orientation(encoded) == orientation
    turned = data.decode_image(encoded, exif_orientation=True)
    np.testing.assert_array_equal(turned, upright(encoded))
    stored = data.decode_image(encoded)
    assert stored.shape == (RGB.height, RGB.width, 3)
    assert np.array_equal(stored, turned) == (orientation == 1)


def test_one_scene_held_in_eight_ways_gives_equal_pixels():
    """PNG, whose pixels are stored exactly: each file holds the scene as that camera saw it."""
    scene = np.asarray(RGB)
    for orientation in ORIENTATIONS:
        # 6 and 8 undo each other; every other transposition undoes itself.
        undo = {6: 8, 8: 6}.get(orientation, orientation)
        seen = Image.fromarray(np.ascontiguousarray(exif.TRANSPOSITIONS[undo](scene)))
        encoded = marked("PNG", orientation, image=seen)
        np.testing.assert_array_equal(data.decode_image(encoded, exif_orientation=True), scene)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [(3, "H"), (4, "I")])
def test_both_byte_orders_and_both_integer_types(order, kind, code):
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 1)
    value = struct.pack(order + code, 6).ljust(4, b"\0")
    tiff += struct.pack(order + "HHI", 0x0112, kind, 1) + value + bytes(4)
    segment = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    jpeg = encode(RGB, "JPEG")
    assert exif.orientation(jpeg[:2] + segment + jpeg[2:]) == 6
    np.testing.assert_array_equal(upright(jpeg[:2] + segment + jpeg[2:]).shape, (83, 61, 3))


def test_damage_to_the_tags_never_ends_in_another_error():
    rng = np.random.default_rng(0)
    for number in range(1000):
        encoded = bytearray(marked(("JPEG", "PNG", "WEBP")[number % 3], 6, RGB.resize((8, 8))))
        for place in rng.integers(0, min(len(encoded), 200), 3):
            encoded[place] = rng.integers(256)
        cut = rng.integers(len(encoded)) if number % 2 else None
        assert exif.orientation(bytes(encoded[:cut])) in ORIENTATIONS
    for value in (0, 9, 65535):
        assert exif.orientation(marked("JPEG", value)) == 1
    assert exif.orientation(b"") == exif.orientation(encode(RGB, "BMP")) == 1


class Turned(data.Source):
    """The same photo in all eight orientations."""

    def __init__(self, exif_orientation):
        self.exif_orientation = exif_orientation
        self.files = [marked("JPEG", k, RGB.resize((60, 40))) for k in ORIENTATIONS]

    def __len__(self):
        return len(self.files)

    def get(self, indices):
        return [self.files[i] for i in indices], np.zeros(len(indices), np.int64)

    def record_name(self, index):
        return str(index)


@pytest.mark.parametrize("exif_orientation", [True, False])
def test_batches_apply_it_where_the_source_says_so(exif_orientation):
    source = Turned(exif_orientation)
    for batches in (
        data.train_batches(source, 8, canvas=64),
        data.eval_batches(source, 8, 64, image_size=32, crop_ratio=0.5),
    ):
        (batch,) = first_batches(batches, 1)
        assert sorted(batch["index"].tolist()) == list(range(8))
        for row, record in enumerate(batch["index"]):
            file = source.files[record]
            expected = upright(file) if exif_orientation else data.decode_image(file)
            height, width = batch["size"][row]
            np.testing.assert_array_equal(batch["canvas"][row, :height, :width], expected)
