"""Encoded image -> uint8 [h, w, 3], bit-identical to Pillow's `Image.open(...).convert('RGB')`.

The content decides, not the file's name: JPEG (gray, RGB, CMYK, YCCK, progressive), PNG
(palette, gray, alpha, 16-bit), BMP and WebP. EXIF orientation is applied where it is asked
for, as Pillow's `ImageOps.exif_transpose` does.
"""

import re

import numpy as np

from deit_jax.data import formats
from deit_jax.data._tensorflow import tensorflow
from deit_jax.data.cmyk import decode_cmyk
from deit_jax.data.exif import upright
from deit_jax.data.headers import frame, is_animated, pixel_count
from deit_jax.data.source import CorruptImage, Record

# Beyond it Pillow refuses an image too.
MAX_PIXELS = 178_956_970


def decode_image(
    record: Record,
    *,
    at_least: int | None = None,
    max_pixels: int = MAX_PIXELS,
    exif_orientation: bool = False,
) -> np.ndarray:
    """RGB pixels, uint8 [h, w, 3]; arrays pass through.

    Args:
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, averaged by the
            decoder, as long as its longer side has this many pixels, equal to Pillow's
            `Image.draft`. None: always at full size.
        max_pixels: height times width of the file, before it is decoded; memory and time
            grow with it.
        exif_orientation: turn the image as its EXIF orientation says.

    Raises:
        CorruptImage: the bytes are damaged, of a format that is not decoded here, or of more
            than `max_pixels`, or the record could not be read.
    """
    if isinstance(record, CorruptImage):
        raise record
    if isinstance(record, np.ndarray):
        return record
    if (count := pixel_count(record)) > max_pixels:
        raise CorruptImage(f"{count:,} pixels, more than max_pixels={max_pixels:,}")
    pixels = _decode(record, at_least)
    return upright(pixels, record) if exif_orientation else pixels


def _decode(record: bytes, at_least: int | None) -> np.ndarray:
    tf = tensorflow()
    try:
        if record[:2] == b"\xff\xd8":
            height, width, components = frame(record)
            if components == 4:
                return decode_cmyk(record, _decode_jpeg)
            fits = lambda ratio: at_least and max(height, width) >= ratio * at_least
            return _decode_jpeg(record, next(filter(fits, (8, 4, 2)), 1))
        if record[:8] == b"\x89PNG\r\n\x1a\n":
            return _decode_png(record)
        if record[:4] == b"RIFF" and record[8:12] == b"WEBP":
            return _decode_webp(record)
        if record[:2] == b"BM":
            return _decode_bmp(record)
    except tf.errors.OpError as error:
        raise CorruptImage(_reason(error)) from error
    raise CorruptImage(formats.describe(record))


def _decode_jpeg(record: bytes, ratio: int = 1) -> np.ndarray:
    # TensorFlow's default method, INTEGER_FAST, differs from Pillow on two thirds of the
    # pixels; the accurate one is bit-identical and no slower.
    image = tensorflow().raw_ops.DecodeJpeg(
        contents=record, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
    )
    # asarray shares the tensor's memory; .numpy() would copy.
    return np.asarray(image)


def _decode_png(record: bytes) -> np.ndarray:
    tf = tensorflow()
    depth_and_type = record[24:26]
    if depth_and_type == b"\x10\x00":
        # Pillow clips 16-bit gray at 255; 16-bit color is reduced to the high byte.
        gray = np.asarray(tf.io.decode_png(record, channels=1, dtype=tf.uint16))
        return np.repeat(np.minimum(gray, 255).astype(np.uint8), 3, axis=2)
    return np.asarray(tf.io.decode_png(record, channels=3))


def _decode_bmp(record: bytes) -> np.ndarray:
    bits = int.from_bytes(record[28:30], "little")
    if bits not in (24, 32):
        # TensorFlow reads the palette's indices as gray levels.
        raise CorruptImage(f"BMP of {bits} bits with a palette; save it as PNG")
    image = np.asarray(tensorflow().io.decode_bmp(record))
    return np.ascontiguousarray(image[..., :3])


def _decode_webp(record: bytes) -> np.ndarray:
    if is_animated(record):
        # TensorFlow's decoder writes beyond the end of the image's memory (2.21).
        raise CorruptImage("animated WebP; save it as one still image")
    image = tensorflow().io.decode_image(record, expand_animations=False)
    return np.ascontiguousarray(np.asarray(image)[..., :3])


def _reason(error: Exception) -> str:
    text = re.sub(r"\{\{.*?\}\}\s*", "", str(error)).partition("[Op:")[0]
    return text.strip().partition("\n")[0][:200]
