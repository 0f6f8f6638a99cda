"""The files of a set of stored labels: one per epoch, with a checksum of every step.

    DIR/labels.json         what the labels are of, see `manifest`
    DIR/epoch-00000.labels  the first epoch

An epoch's file is a header and one record per step:

    magic     8 bytes  b"DEITLABL"
    crc, size 2 x u32  CRC-32 (zlib's) and length of what follows, little endian
    header    JSON     set, epoch, batch, steps and row, padded with spaces to a multiple of 64
    record    u32 crc, u32 step, row[batch]; the CRC-32 is that of step and rows

`set` is the digest of the manifest, `step` counts from 0 in the epoch, and rows are in the order
of the global batch. All records have one size, so a step's rows lie at a computable offset, and
each number of processes reads its own rows. A file with fewer than `steps` records is the beginning
of an epoch.
"""

import concurrent.futures
import json
import re
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from deit_jax import storage
from deit_jax.errors import ConfigError, printable

_MAGIC = b"DEITLABL"
_ALIGN = 64
_NAME = re.compile(r"epoch-(\d+)\.labels")
# Bytes read at a time where whole files are checked.
_CHUNK = 1 << 26
# Requests at a time, for stores that answer late.
_REQUESTS = 16


class LabelError(ConfigError):
    """Stored labels cannot be used; the message names the file."""


class EpochFiles:
    """Reads and writes the epochs of one set.

    Attributes:
      record: dtype of a step.

    Args:
      folder: of the set.
      set_id: digest of its manifest.
      row: dtype of what is stored for an image.
      batch: rows of the global batch.
      steps: of an epoch.
    """

    def __init__(self, folder: storage.Path, set_id: str, row: np.dtype, batch: int, steps: int):
        self.folder, self.steps = folder, steps
        self.record = np.dtype([("crc", "<u4"), ("step", "<u4"), ("rows", row, (batch,))])
        self._set_id, self._batch = set_id, batch
        self._offset = len(self.header(0))

    def path(self, epoch: int) -> storage.Path:
        """The file of an epoch."""
        return self.folder / f"epoch-{epoch:05d}.labels"

    def header(self, epoch: int) -> bytes:
        """The header of an epoch's file; its length is the same for every epoch."""
        content = {
            "set": self._set_id,
            "epoch": f"{epoch:05d}",
            "batch": self._batch,
            "steps": self.steps,
            "row": self.record["rows"].base.descr,
        }
        text = json.dumps(content).encode()
        start = len(_MAGIC) + 8
        text += b" " * (-(start + len(text)) % _ALIGN)
        return _MAGIC + np.array([zlib.crc32(text), len(text)], "<u4").tobytes() + text

    def pack(self, step: int, rows: Mapping[str, np.ndarray]) -> memoryview:
        """The record of a step (counted in its epoch) from arrays [B, ...] by field."""
        record = np.zeros(1, self.record)
        record["step"] = step
        for name, values in rows.items():
            record["rows"][name] = values
        data = record.view(np.uint8).data
        record["crc"] = zlib.crc32(data[4:])
        return data

    def write(self, epoch: int, records: Iterable[memoryview]) -> None:
        """Writes the records of an epoch's first steps; a reader sees the old file or this one."""
        with storage.replacing(self.path(epoch)) as file:
            file.write(self.header(epoch))
            file.writelines(records)

    def steps_present(self) -> dict[int, int]:
        """Steps that each epoch in the folder has by the size of its file.

        Raises:
          LabelError: a size that is not that of whole records.
        """
        found = {}
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        epochs = sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))
        with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
            for epoch, size in zip(epochs, pool.map(self._size, epochs), strict=True):
                count, rest = divmod(size - self._offset, self.record.itemsize)
                if count < 0 or rest or count > self.steps:
                    raise self._error(epoch, f"is cut or has been added to ({size:,} bytes)")
                found[epoch] = count
        return found

    def check_headers(self, epochs: range) -> None:
        """Raises LabelError unless the files of these epochs belong to the set."""
        with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
            for epoch, header in zip(epochs, pool.map(self._readable_header, epochs), strict=True):
                self._check_header(epoch, header)

    def read(self, epoch: int, first: int, count: int) -> tuple[np.ndarray, LabelError | None]:
        """Records of at most `count` steps from `first` on, up to one that is missing or damaged.

        Returns them with the error of that one; the caller raises it where it needs the step.
        """
        size = self.record.itemsize
        try:
            data = storage.read_range(self.path(epoch), self._offset + first * size, count * size)
        except OSError as error:
            return np.empty(0, self.record), self._unreadable(epoch, error)
        good = self._intact(data, first)
        records = np.frombuffer(data[: good * size], self.record)
        if good == count:
            return records, None
        step = first + good
        problem = f"ends before step {step} of the epoch"
        if len(data) >= (good + 1) * size:
            problem = f"is damaged at step {step} of the epoch (CRC-32)"
        return records, self._error(epoch, problem)

    def beginning(self, epoch: int) -> bytes:
        """The records of an epoch's file up to the first that is missing or damaged."""
        size, good = self.record.itemsize, bytearray()
        try:
            if self._header(epoch) != self.header(epoch):
                return b""
            asked = read = max(_CHUNK // size, 1) * size
            while read == asked:
                chunk = storage.read_range(self.path(epoch), self._offset + len(good), asked)
                intact = self._intact(chunk, len(good) // size) * size
                good += chunk[:intact]
                read = intact
        except FileNotFoundError:
            return b""
        return bytes(good)

    def _intact(self, data: bytes, first: int) -> int:
        """How many records from the start of `data`, that of step `first`, are good."""
        size, view = self.record.itemsize, memoryview(data)
        for index in range(len(data) // size):
            record = view[index * size : (index + 1) * size]
            crc, step = np.frombuffer(record[:8], "<u4")
            if crc != zlib.crc32(record[4:]) or step != first + index:
                return index
        return len(data) // size

    def _header(self, epoch: int) -> bytes:
        return storage.read_range(self.path(epoch), 0, self._offset)

    def _readable_header(self, epoch: int) -> bytes:
        try:
            return self._header(epoch)
        except OSError as error:
            raise self._unreadable(epoch, error) from error

    def _check_header(self, epoch: int, header: bytes) -> None:
        if header == self.header(epoch):
            return
        start = len(_MAGIC) + 8
        crc, size = np.frombuffer(header[len(_MAGIC) : start].ljust(8, b"\0"), "<u4")
        text = header[start : start + int(size)]
        if not header.startswith(_MAGIC) or zlib.crc32(text) != crc:
            raise self._error(epoch, "is damaged in its header")
        found, expected = json.loads(text), json.loads(self.header(epoch)[start:])
        differ = [
            f"{key} {printable(str(found.get(key)), limit=40)} instead of {value}"
            for key, value in expected.items()
            if found.get(key) != value
        ]
        raise self._error(epoch, f"belongs to other labels ({', '.join(differ)})")

    def _size(self, epoch: int) -> int:
        return self.path(epoch).stat().st_size

    def _unreadable(self, epoch: int, error: OSError) -> LabelError:
        if isinstance(error, FileNotFoundError):
            return self._error(epoch, "is missing")
        return self._error(epoch, f"cannot be read ({error.strerror})")

    def _error(self, epoch: int, problem: str) -> LabelError:
        return LabelError(
            f"labels: {self.path(epoch)} {problem}; `deit-jax labels --output={self.folder} "
            f"--epochs={epoch}:{epoch}` with the teacher's --config makes it again"
        )
