"""What image files say about themselves, read without decoding them."""

import struct
from collections.abc import Iterator

SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SOS = 0xDA
# Markers without a segment: a stuffed zero, TEM, RSTn, SOI.
_ALONE = frozenset({0, 1, *range(0xD0, 0xD9)})


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the header segments of a JPEG up to and including SOS.

    Bytes between segments that belong to none are passed over, as libjpeg does.
    """
    position = data.find(b"\xff", 2)
    while 0 <= position <= len(data) - 4:
        marker = data[position + 1]
        end = position + 1
        if marker in _ALONE:
            end = position + 2
        elif marker != 0xFF:
            end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
            yield marker, position, end
        if marker == SOS:
            return
        position = data.find(b"\xff", end)


def frame(data: bytes) -> tuple[int, int, int]:
    """Height, width and components (4 for CMYK and YCCK) of a JPEG; zeros when it has no frame."""
    for marker, start, end in segments(data):
        if marker in SOF and start + 9 < min(end, len(data)):
            return struct.unpack_from(">HHB", data, start + 5)
    return 0, 0, 0


def webp_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk of a WebP file, and where its content starts and how long it is."""
    position = 12
    while position + 8 < len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, position + 8, length
        # Chunks begin at even positions.
        position += 8 + length + length % 2


def is_animated(data: bytes) -> bool:
    """Whether a WebP file has an animation, or says so."""
    return any(
        kind in (b"ANIM", b"ANMF") or (kind == b"VP8X" and bool(data[start] & 2))
        for kind, start, _ in webp_chunks(data)
    )


def pixel_count(data: bytes) -> int:
    """Height times width of a JPEG, PNG, BMP or WebP file; 0 where its header is cut short."""
    if data[:2] == b"\xff\xd8":
        height, width, _ = frame(data)
        return height * width
    if data[:4] == b"RIFF":
        sizes = (_webp_pixels(kind, data[s : s + 10]) for kind, s, _ in webp_chunks(data))
        return max(sizes, default=0)
    # Big-endian after 16 bytes of PNG, little-endian after 18 of BMP, where a negative height
    # means rows from top to bottom.
    layout, position = (">ii", 16) if data[:4] == b"\x89PNG" else ("<ii", 18)
    if len(data) < position + 8:
        return 0
    width, height = struct.unpack_from(layout, data, position)
    return abs(width * height)


def _webp_pixels(kind: bytes, first: bytes) -> int:
    little = lambda start, stop: int.from_bytes(first[start:stop], "little")
    if kind == b"VP8X":
        return (little(4, 7) + 1) * (little(7, 10) + 1)
    if kind == b"VP8 ":
        return (little(6, 8) & 0x3FFF) * (little(8, 10) & 0x3FFF)
    if kind == b"VP8L":
        sizes = little(1, 5)
        return ((sizes & 0x3FFF) + 1) * ((sizes >> 14 & 0x3FFF) + 1)
    return 0
