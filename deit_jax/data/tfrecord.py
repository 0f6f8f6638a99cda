"""TFRecord files by record number: an offset index, positional reads, verified checksums.

tf.data reads these files only from front to back. An index of where each record starts
(one pass over the headers, stored in the user's cache) makes any order cost the same.

A record is its length (8 bytes), the length's CRC-32C, the payload, the payload's CRC-32C.
Both are checked. A single flipped bit changes most photos visibly and every label, and the
decoder sees it in one photo of 300.
"""

import functools
import os
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np

from deit_jax import storage
from deit_jax.data.local_files import LocalFiles, index_once
from deit_jax.data.source import CorruptImage
from deit_jax.errors import ConfigError

_HEADER_BYTES, _FOOTER_BYTES = 12, 4
# Read at a time while indexing: small records come many to a block.
_BLOCK = 4096
_SEARCH = 1 << 20
# In place of the payload's checksum where the one of its length is wrong.
_BAD_LENGTH = -1
Read = Callable[[int, int], bytes]


def masked(crc):
    """A CRC-32C as it is stored: rotated and shifted, for any integer or uint64 array."""
    return ((crc >> 15 | crc << 17) & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF


def scan_records(path: str) -> np.ndarray:
    """Start, length in bytes and stored checksum of each payload, int64 [n, 3].

    Raises:
        ConfigError: the last record goes beyond the end of the file.
    """
    with open(path, "rb", buffering=0) as file:
        block, start = b"", 0

        def read(count: int, position: int) -> bytes:
            nonlocal block, start
            if position < start or position + count > start + len(block):
                block, start = os.pread(file.fileno(), max(count, _BLOCK), position), position
            return block[position - start : position - start + count]

        records = list(_records(read, os.path.getsize(path), path))
    return np.array(records, np.int64).reshape(-1, 3)


def split_records(content: bytes, path: str) -> list[bytes | CorruptImage]:
    """Payloads of a whole TFRecord file that is already in memory; raises as `scan_records`."""
    read = lambda count, position: content[position : position + count]
    payloads: list[bytes | CorruptImage] = []
    for start, length, crc in _records(read, len(content), path):
        try:
            payloads.append(_verified(content[start : start + length], crc))
        except CorruptImage as error:
            payloads.append(error)
    return payloads


def _verified(payload: bytes, crc: int) -> bytes:
    if crc == _BAD_LENGTH:
        raise CorruptImage("damaged: the length of the record fails its checksum")
    if masked(google_crc32c.value(payload)) != crc:
        raise CorruptImage("damaged: the record fails its checksum")
    return payload


def _records(read: Read, size: int, path: str) -> Iterator[tuple[int, int, int]]:
    """(start, length, checksum) of each payload; `read(count, position)` is of the file.

    A record whose length is damaged ends where the next sound header is found.
    """
    position = 0
    while position < size:
        header = read(_HEADER_BYTES, position)
        start = position + _HEADER_BYTES
        length, crc = int.from_bytes(header[:8], "little"), int.from_bytes(header[8:], "little")
        sound = len(header) == _HEADER_BYTES and crc == masked(google_crc32c.value(header[:8]))
        end = start + length
        if not sound:
            end = _next_header(read, start + _FOOTER_BYTES, size) - _FOOTER_BYTES
        if end + _FOOTER_BYTES > size or end < start:
            raise ConfigError(
                f"{path} is damaged or cut short: the record at byte {position} does not end "
                f"before byte {size}, the end of the file; prepare the data set again"
            )
        footer = read(_FOOTER_BYTES, end)
        yield start, end - start, int.from_bytes(footer, "little") if sound else _BAD_LENGTH
        position = end + _FOOTER_BYTES


@functools.cache
def _byte_sums() -> tuple[int, np.ndarray]:
    """CRC of eight zeros, and uint64 [8, 256]: what a byte at one of the places changes in it."""
    zeros = google_crc32c.value(bytes(8))
    sums = [
        [google_crc32c.value(bytes(i) + bytes([b]) + bytes(7 - i)) ^ zeros for b in range(256)]
        for i in range(8)
    ]
    return zeros, np.array(sums, np.uint64)


def _next_header(read: Read, position: int, size: int) -> int:
    """Where the first header with a sound checksum begins, from `position` on; `size` if none."""
    zeros, sums = _byte_sums()
    for begin in range(position, size - _HEADER_BYTES + 1, _SEARCH):
        content = read(_SEARCH + _HEADER_BYTES - 1, begin)
        bytes_at = np.frombuffer(content, np.uint8)
        n = len(bytes_at) - _HEADER_BYTES + 1
        # The CRC of a sum (exclusive or) is the sum of the CRCs.
        crc = np.full(n, zeros, np.uint64)
        for i in range(8):
            crc ^= sums[i][bytes_at[i : i + n]]
        stored = np.lib.stride_tricks.sliding_window_view(bytes_at[8:], 4).copy().view("<u4")[:, 0]
        found = np.flatnonzero(masked(crc) == stored)
        if found.size:
            return begin + int(found[0])
    return size


class TFRecordFiles:
    """Payloads by (file, record) from TFRecord files."""

    def __init__(self, paths: list[str]):
        self._index = index_once("tfrecord with checksums", paths, scan_records)
        self.lengths = tuple(map(len, self._index))
        self._files = LocalFiles(paths)

    def read(self, shard: int, record: int) -> bytes:
        """A payload; raises CorruptImage where it cannot be read or fails its checksum."""
        start, length, crc = self._index[shard][record].tolist()
        return _verified(self._files.read(shard, start, length), crc)

    @staticmethod
    def read_whole(path: str) -> list[bytes | CorruptImage]:
        """All payloads of one file."""
        return split_records(storage.path(path).read_bytes(), path)
