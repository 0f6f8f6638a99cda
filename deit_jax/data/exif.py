"""EXIF orientation: which way up the camera was, and turning the pixels accordingly."""

import struct

import numpy as np

from deit_jax.data.headers import segments, webp_chunks

_APP1, _TAG = 0xE1, 0x0112
_MARK = b"Exif\0\0"
# struct's format by TIFF type: SHORT, LONG.
_INTEGERS = {3: "H", 4: "I"}
# Stored pixels [h, w, ...] -> the pixels as they are meant; each is a view.
TRANSPOSITIONS = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


def upright(pixels: np.ndarray, data: bytes) -> np.ndarray:
    """Pixels [h, w, ...] of the image file `data`, as its orientation says; a view."""
    return TRANSPOSITIONS[orientation(data)](pixels)


def orientation(data: bytes) -> int:
    """EXIF orientation of a JPEG, PNG or WebP file, 1..8; 1 where it has none or a damaged one."""
    try:
        value = _of_tiff(_tiff(data))
    except struct.error:
        return 1
    return value if value in TRANSPOSITIONS else 1


def _tiff(data: bytes) -> bytes:
    """The TIFF structure that EXIF is; empty without one."""
    if data[:2] == b"\xff\xd8":
        for marker, start, end in segments(data):
            if marker == _APP1 and data[start + 4 : start + 10] == _MARK:
                return data[start + 10 : end]
    elif data[:4] == b"\x89PNG":
        position = 8
        while position + 8 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, position)
            if kind == b"eXIf":
                return data[position + 8 : position + 8 + length]
            position += 12 + length
    elif data[:4] == b"RIFF":
        for kind, start, length in webp_chunks(data):
            if kind == b"EXIF":
                return data[start : start + length].removeprefix(_MARK)
    return b""


def _of_tiff(tiff: bytes) -> int:
    """The orientation in the first directory of a TIFF structure; 1 if it has none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    (entries,) = struct.unpack_from(order + "H", tiff, directory)
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, entry)
        if tag == _TAG and kind in _INTEGERS:
            return struct.unpack_from(order + _INTEGERS[kind], tiff, entry + 8)[0]
    return 1
