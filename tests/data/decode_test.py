"""Decoding and resizing against Pillow, every comparison to the last bit."""

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from deit_jax import data
from deit_jax.data import _tensorflow, decode, headers
from deit_jax.data.resize import evaluation_square, fit_within, resize_bicubic, resized_shape

HEIGHT, WIDTH = 61, 83


def pillow(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


def encode(image, file_format, **options):
    with io.BytesIO() as file:
        image.save(file, file_format, **options)
        return file.getvalue()


def pixels(seed, channels=3, height=HEIGHT, width=WIDTH):
    """Smooth in the large, noisy in the small, so that subsampling and clipping matter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (5 + 3 * c) + c) * np.cos(y / (4 + 2 * c)) for c in range(channels)]
    noise = rng.normal(0, 25, (height, width, channels))
    return np.clip(128 + 150 * np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


RGB = Image.fromarray(pixels(0))
RGBA = Image.fromarray(pixels(1, 4))
PALETTE = RGB.quantize(64)


def png16(samples, color_type):
    """A 16-bit PNG; Pillow cannot write the colored ones."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def samples16(channels):
    shape = (9, 13, channels) if channels > 1 else (9, 13)
    return np.random.default_rng(channels).integers(0, 65536, shape)


FILES = {
    "jpeg": encode(RGB, "JPEG"),
    "jpeg progressive": encode(RGB, "JPEG", progressive=True, quality=95),
    "jpeg 4:4:4": encode(RGB, "JPEG", subsampling=0),
    "jpeg 4:2:2": encode(RGB, "JPEG", subsampling=1),
    "jpeg rgb": encode(RGB, "JPEG", keep_rgb=True),
    "jpeg gray": encode(RGB.convert("L"), "JPEG"),
    "jpeg one pixel": encode(RGB.resize((1, 1)), "JPEG"),
    "png": encode(RGB, "PNG"),
    "png gray": encode(RGB.convert("L"), "PNG"),
    "png gray alpha": encode(RGB.convert("LA"), "PNG"),
    "png one bit": encode(RGB.convert("1"), "PNG"),
    "png alpha": encode(RGBA, "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette transparent": encode(PALETTE, "PNG", transparency=3),
    "png two-bit palette": encode(RGB.quantize(4), "PNG"),
    "png 16 gray": png16(samples16(1), 0),
    "png 16 rgb": png16(samples16(3), 2),
    "png 16 rgba": png16(samples16(4), 6),
    "png 16 gray alpha": png16(samples16(2), 4),
    "bmp": encode(RGB, "BMP"),
    "webp": encode(RGB, "WEBP"),
    "webp alpha": encode(RGBA, "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", FILES)
def test_equals_pillow(kind):
    decoded = data.decode_image(FILES[kind])
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pillow(FILES[kind]))


def adobe(encoded, transform):
    """The file with its Adobe marker's color transform set, or without the marker (None)."""
    at = encoded.index(b"\xff\xee")
    if transform is None:
        return encoded[:at] + encoded[at + 16 :]
    return encoded[: at + 15] + bytes([transform]) + encoded[at + 16 :]


@pytest.mark.parametrize("transform", [0, 1, 2, None])
@pytest.mark.parametrize("options", [{}, {"progressive": True, "quality": 98, "subsampling": 2}])
def test_four_component_jpeg_equals_pillow(transform, options):
    image = Image.frombytes("CMYK", (WIDTH, HEIGHT), pixels(2, 4).tobytes())
    encoded = adobe(encode(image, "JPEG", **options), transform)
    np.testing.assert_array_equal(data.decode_image(encoded), pillow(encoded))


@pytest.mark.parametrize(("at_least", "ratio"), [(84, 1), (83, 1), (41, 2), (20, 4), (5, 8)])
def test_reduced_decoding_equals_pillows_draft(at_least, ratio):
    decoded = data.decode_image(FILES["jpeg"], at_least=at_least)
    assert decoded.shape == (-(-HEIGHT // ratio), -(-WIDTH // ratio), 3)
    with Image.open(io.BytesIO(FILES["jpeg"])) as image:
        if ratio > 1:
            image.draft("RGB", (WIDTH // ratio, HEIGHT // ratio))
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"<html>not found</html>",
        FILES["jpeg"][:600],
        FILES["jpeg"][:-2],
        FILES["png"][:-60],
        encode(RGB, "TIFF"),
        encode(PALETTE, "BMP"),
        b"\xff\xd8",
    ],
)
def test_what_cannot_be_decoded_is_an_error(damaged):
    with pytest.raises(data.CorruptImage) as error:
        data.decode_image(damaged)
    assert "{{" not in str(error.value) and str(error.value)


def webp(*chunks):
    """A WebP file of these (kind, content) chunks."""
    body = b"".join(struct.pack("<4sI", kind, len(text)) + text for kind, text in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def test_animated_webp_never_reaches_tensorflow(monkeypatch):
    """Its decoder writes beyond the end of the memory that it allocates."""

    class Errors:
        OpError = OSError

    class NoDecoder:
        errors = Errors

    monkeypatch.setattr(decode, "tensorflow", NoDecoder)
    frames = [Image.fromarray(pixels(seed)) for seed in range(2)]
    animated = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    still = (b"ALPH", b"1234"), (b"EXIF", b"12")
    canvas = bytes(9)
    for file in (
        animated,
        animated[:20] + b"\0" + animated[21:],
        webp((b"VP8X", b"\x02" + canvas), *still),
        webp((b"VP8X", b"\x00" + canvas), *still, (b"ANIM", b"123456")),
        webp((b"VP8X", b"\x00" + canvas), *still, (b"ANMF", b"123456")),
    ):
        with pytest.raises(data.CorruptImage, match="animated"):
            data.decode_image(file)


def test_a_cut_frame_header_of_a_four_component_jpeg_is_an_error():
    """Nine to twenty-one of the 22 bytes: the rest of the segment becomes the scan's."""
    encoded = encode(Image.fromarray(pixels(0)).convert("CMYK"), "JPEG")
    start = next(start for kind, start, _ in headers.segments(encoded) if kind == 0xC0)
    for length in range(8, 20):
        cut = encoded[: start + 2] + struct.pack(">H", length) + encoded[start + 4 :]
        shorter = encoded[: start + 2 + length] + encoded[start + 22 :]
        for damaged in (cut, shorter):
            with pytest.raises(data.CorruptImage):
                data.decode_image(damaged)


def test_photos_equal_pillow(tfds_dir):
    source = data.open_data(name="imagenet2012", data_dir=str(tfds_dir)).train
    for encoded in source.get(np.arange(0, 400, 10))[0]:
        np.testing.assert_array_equal(data.decode_image(encoded), pillow(encoded))


@pytest.mark.parametrize(
    ("height", "width", "new_height", "new_width"),
    [(75, 100, 51, 68), (300, 40, 31, 4), (10, 7, 33, 35), (3, 2, 9, 5), (90, 1, 12, 1)],
)
def test_resize_equals_pillow(height, width, new_height, new_width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    expected = Image.fromarray(image).resize((new_width, new_height), Image.BICUBIC)
    np.testing.assert_array_equal(resize_bicubic(image, new_height, new_width), expected)


def test_fit_within_keeps_what_fits_and_the_aspect_of_the_rest():
    small = pixels(0, height=40, width=64)
    assert fit_within(small, 64) is small
    assert fit_within(pixels(0, height=3, width=900), 60).shape == (1, 60, 3)
    image = pixels(0, height=150, width=101)
    shrunk = fit_within(image, 60)
    assert shrunk.shape == (60, 40, 3)
    # Pillow's, but for what Pillow loses by rounding and clipping between its two passes.
    expected = np.asarray(Image.fromarray(image).resize((40, 60), Image.BICUBIC), np.int32)
    difference = np.abs(shrunk - expected)
    assert np.mean(difference <= 1) > 0.99 and difference.max() < 16


@pytest.mark.parametrize("image_size", [32, 33, 40])
@pytest.mark.parametrize("shape", [(90, 131), (131, 90), (100, 100), (301, 90), (90, 302)])
def test_evaluation_square_has_pillows_center_crop(image_size, shape):
    """Any crop ratio: the crop of the square is the crop of the whole resized image."""
    image = pixels(3, height=shape[0], width=shape[1])
    for short in range(image_size, image_size + 7):
        height, width = resized_shape(*shape, short)
        whole = np.asarray(Image.fromarray(image).resize((width, height), Image.BICUBIC))
        square = evaluation_square(image, short=short, image_size=image_size)
        assert square.shape == (short, short, 3)
        np.testing.assert_array_equal(
            center_crop(square, image_size), center_crop(whole, image_size)
        )


def test_a_strip_is_resized_only_where_the_crop_is():
    """Whole, this one would be 11 GB at a short side of 256."""
    image = pixels(3, height=4, width=60000)
    for strip in (image, image.transpose(1, 0, 2)):
        tracemalloc.start()
        square = evaluation_square(strip, short=256, image_size=224)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert square.shape == (256, 256, 3) and most < 10e6
        long = strip.shape.index(60000)
        # A part of whole source pixels around the center is resized to the same values.
        part = np.take(strip, range(29990, 30010), axis=long)
        new = [256, 256]
        new[long] = 64 * 20
        resized = np.asarray(Image.fromarray(part).resize(new[::-1], Image.BICUBIC))
        expected = np.take(resized, range(640 - 128, 640 + 128), axis=long)
        np.testing.assert_array_equal(square, expected)


def png_header(height, width):
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)


SIZED = {
    **{kind: FILES[kind] for kind in ("jpeg", "jpeg progressive", "png", "bmp", "webp")},
    "webp lossless": encode(RGB, "WEBP", lossless=True),
    "webp alpha": FILES["webp alpha"],
    "cmyk": encode(Image.fromarray(pixels(0)).convert("CMYK"), "JPEG"),
    # libjpeg passes over what is between two segments.
    "jpeg with bytes between": FILES["jpeg"][:20] + b"ab" + FILES["jpeg"][20:],
}


@pytest.mark.parametrize("kind", SIZED)
def test_more_pixels_than_the_limit_are_refused_before_decoding(kind, monkeypatch):
    count = HEIGHT * WIDTH
    assert data.decode_image(SIZED[kind], max_pixels=count).shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(decode, "tensorflow", None)
    with pytest.raises(data.CorruptImage, match=f"5,063 pixels, more than max_pixels={5062:,}"):
        data.decode_image(SIZED[kind], max_pixels=count - 1)
    with pytest.raises(data.CorruptImage, match="max_pixels=178,956,970"):
        data.decode_image(png_header(22000, 22000))


def center_crop(image, size):
    """torchvision's CenterCrop: the offset is rounded, half to even."""
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def test_tensorflow_prints_nothing():
    """In a new process: it prints, if at all, when it is first imported."""
    program = "from deit_jax.data._tensorflow import tensorflow; tensorflow()"
    plain = {name: text for name, text in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=plain,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_only_log_lines_are_dropped(capfd):
    with _tensorflow._without_log_lines():
        os.write(2, b"I0000 00:00:1.2 3 cudart_stub.cc:31] Could not find cuda drivers\nkept\n")
        os.write(2, b"2026-11-22 01:37:16.300244: E external/xla/cuda_platform.cc:51] no cuInit\n")
    os.write(2, b"E0000 00:00:1.2 3 after\n")
    assert capfd.readouterr().err == "kept\nE0000 00:00:1.2 3 after\n"
