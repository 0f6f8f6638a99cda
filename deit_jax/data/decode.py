"""Encoded image -> uint8 [h, w, 3], bit-identical to Pillow's `Image.open(...).convert('RGB')`.

The content decides, not the file's name: JPEG (gray, RGB, CMYK, YCCK, progressive), PNG
(palette, gray, alpha, 16-bit), BMP and WebP. EXIF orientation is applied where it is asked
for, as Pillow's `ImageOps.exif_transpose` does.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

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
        at_least, max_pixels: see `decoder_name`.
        exif_orientation: turn the image as its EXIF orientation says.

    Raises:
        CorruptImage: the bytes are damaged or `decoder_name` refuses them, or the record could
            not be read.
    """
    if isinstance(record, CorruptImage):
        raise record
    if isinstance(record, np.ndarray):
        return record
    decode = _DECODERS[decoder_name(record, at_least=at_least, max_pixels=max_pixels)]
    tf = tensorflow()
    try:
        # asarray shares the tensor's memory; .numpy() would copy.
        pixels = np.ascontiguousarray(np.asarray(decode(record)))
    except tf.errors.OpError as error:
        raise CorruptImage(_reason(error)) from error
    return upright(pixels, record) if exif_orientation else pixels


def decoder_name(
    record: bytes, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS
) -> str:
    """Which decoder an encoded image needs: one of `GRAPH_DECODERS`, or another one of here.

    Whatever could harm TensorFlow is refused, from the headers alone.

    Args:
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, averaged by the
            decoder, as long as its longer side has this many pixels, equal to Pillow's
            `Image.draft`. None: always at full size.
        max_pixels: height times width of the file, before it is decoded; memory and time
            grow with it.

    Raises:
        CorruptImage: of a format that is not decoded here, or of more than `max_pixels`.
    """
    if (pixels := pixel_count(record)) > max_pixels:
        raise CorruptImage(f"{pixels:,} pixels, more than max_pixels={max_pixels:,}")
    if record[:2] == b"\xff\xd8":
        height, width, components = frame(record)
        if components == 4:
            return "cmyk"
        fits = lambda ratio: at_least and max(height, width) >= ratio * at_least
        return f"jpeg 1/{next(filter(fits, (8, 4, 2)), 1)}"
    if record[:8] == b"\x89PNG\r\n\x1a\n":
        # Depth and color type.
        return "png 16 gray" if record[24:26] == b"\x10\x00" else "png"
    if record[:4] == b"RIFF" and record[8:12] == b"WEBP":
        if is_animated(record):
            # TensorFlow's decoder writes beyond the end of the image's memory (2.21).
            raise CorruptImage("animated WebP; save it as one still image")
        return "webp"
    if record[:2] == b"BM":
        bits = int.from_bytes(record[28:30], "little")
        if bits not in (24, 32):
            # TensorFlow reads the palette's indices as gray levels.
            raise CorruptImage(f"BMP of {bits} bits with a palette; save it as PNG")
        return "bmp"
    raise CorruptImage(formats.describe(record))


def _jpeg(contents: Any, ratio: int = 1) -> Any:
    # TensorFlow's default method, INTEGER_FAST, differs from Pillow on two thirds of the
    # pixels; the accurate one is bit-identical and no slower.
    return tensorflow().raw_ops.DecodeJpeg(
        contents=contents, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE"
    )


def _png(contents: Any) -> Any:
    return tensorflow().io.decode_png(contents, channels=3)


def _webp(contents: Any) -> Any:
    return tensorflow().io.decode_image(contents, expand_animations=False)[..., :3]


def _png_16_gray(record: bytes) -> np.ndarray:
    tf = tensorflow()
    # Pillow clips 16-bit gray at 255; 16-bit color is reduced to the high byte.
    gray = np.asarray(tf.io.decode_png(record, channels=1, dtype=tf.uint16))
    return np.repeat(np.minimum(gray, 255).astype(np.uint8), 3, axis=2)


def _bmp(record: bytes) -> Any:
    return tensorflow().io.decode_bmp(record)[..., :3]


def _cmyk(record: bytes) -> np.ndarray:
    return decode_cmyk(record, lambda plain: np.asarray(_jpeg(plain)))


# Encoded image -> pixels, of TensorFlow's operations alone: they also run in a graph.
GRAPH_DECODERS: dict[str, Callable[[Any], Any]] = {
    **{f"jpeg 1/{ratio}": functools.partial(_jpeg, ratio=ratio) for ratio in (1, 2, 4, 8)},
    "png": _png,
    "webp": _webp,
}
_DECODERS = GRAPH_DECODERS | {"cmyk": _cmyk, "png 16 gray": _png_16_gray, "bmp": _bmp}


def _reason(error: Exception) -> str:
    text = re.sub(r"\{\{.*?\}\}\s*", "", str(error)).partition("[Op:")[0]
    return text.strip().partition("\n")[0][:200]
