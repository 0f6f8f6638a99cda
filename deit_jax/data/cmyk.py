"""Four-component JPEG files (CMYK, YCCK), which ImageNet has 22 of, to Pillow's RGB.

TensorFlow's decoder gives only RGB for them, as floor(k * c / 255) when the file has an
Adobe marker and floor((255 - k) * (255 - c) / 255) when it has none; Pillow rounds, and
treats every file as Adobe's inverted kind. The exact planes follow from decoding the same
data under edited headers: with A and N the results with and without the marker,
k + c = 255 + A - N for each color, whatever was lost to rounding; and a quantization table
of zeros makes the k plane the constant 128, which leaves c alone.
"""

from collections.abc import Callable

import numpy as np

from deit_jax.data.headers import SOF, SOS, segments
from deit_jax.data.source import CorruptImage

_DQT, _APP14 = 0xDB, 0xEE
# Of a frame header with four components, marker included.
_SOF_BYTES = 22
_ADOBE_CMYK = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def decode_cmyk(data: bytes, decode_rgb: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """uint8 [h, w, 3], equal to Pillow's `convert('RGB')` of a four-component JPEG.

    Args:
        data: the file.
        decode_rgb: TensorFlow's decoder, bytes -> uint8 [h, w, 3].

    Raises:
        CorruptImage: a frame header that is too short for four components.
    """
    colors = _inverted_sum(data, decode_rgb, constant_k=True) - 128
    k = (_inverted_sum(data, decode_rgb, constant_k=False) - colors)[..., :1]
    if _is_ycck(data):
        colors = _ycc_to_cmy(colors)
    product = (255 - colors) * k + 128
    return np.clip(k - ((product >> 8) + product >> 8), 0, 255).astype(np.uint8)


def _inverted_sum(data: bytes, decode_rgb, *, constant_k: bool) -> np.ndarray:
    """Stored k + c of every pixel and color, int32 [h, w, 3]."""
    with_marker = decode_rgb(_edited(data, marker=True, constant_k=constant_k)).astype(np.int32)
    without = decode_rgb(_edited(data, marker=False, constant_k=constant_k))
    return 255 + with_marker - without


def _edited(data: bytes, *, marker: bool, constant_k: bool) -> bytes:
    """The file as plain CMYK, with or without Adobe marker, and its k plane made constant."""
    parts = [data[:2]]
    if marker:
        parts.append(_ADOBE_CMYK)
    free = 0
    end = 2
    for kind, start, end in segments(data):
        segment = bytearray(data[start:end])
        if kind == _APP14:
            continue
        if kind in SOF and len(segment) < _SOF_BYTES:
            raise CorruptImage("the frame header of the JPEG is cut short")
        if kind in SOF and constant_k:
            tables = {segment[12 + 3 * i] for i in range(3)}
            free = min({0, 1, 2, 3} - tables)
            segment[12 + 3 * 3] = free
        if kind == SOS and constant_k:
            parts.append(bytes([0xFF, _DQT, 0, 67, free]) + bytes(64))
        parts.append(bytes(segment))
    return b"".join([*parts, data[end:]])


def _is_ycck(data: bytes) -> bool:
    for marker, start, end in segments(data):
        if marker == _APP14 and data[start + 4 : start + 9] == b"Adobe" and end - start >= 16:
            return data[start + 15] != 0
    return False


def _ycc_to_cmy(ycc: np.ndarray) -> np.ndarray:
    """libjpeg's fixed-point conversion, int32 [h, w, 3]."""
    y, cb, cr = ycc[..., 0], ycc[..., 1] - 128, ycc[..., 2] - 128
    half = 1 << 15
    red = y + (91881 * cr + half >> 16)
    green = y + (-22554 * cb - 46802 * cr + half >> 16)
    blue = y + (116130 * cb + half >> 16)
    return 255 - np.clip(np.stack([red, green, blue], axis=-1), 0, 255)
