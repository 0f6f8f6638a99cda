"""Host batches of uint8 canvases: their memory, their parts, and how a row is filled."""

import collections
import ctypes
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deit_jax.data.decode import decode_image
from deit_jax.data.headers import frame
from deit_jax.data.source import CorruptImage, Record, Source

Batch = dict[str, np.ndarray]
# A batch without content, the rows to fill and their records.
Job = tuple[Batch, np.ndarray, np.ndarray]
# Record number -> why the record cannot be decoded.
Reasons = dict[int, str]


class CanvasMemory:
    """Memory for uint8 [n, C, C, 3] arrays, reused once nothing refers to the array any more.

    Fresh memory for every batch costs a tenth of all host time, most of it the system's
    clearing of pages. A fixed ring would be wrong: a device_put on CPU may keep using the
    host's buffer for as long as the device array lives.
    """

    def __init__(self, rows: int, canvas: int):
        self._shape = (rows, canvas, canvas, 3)
        self._free: collections.deque = collections.deque()

    def array(self) -> np.ndarray:
        """An array with undefined content."""
        memory = self._free.pop() if self._free else np.zeros(self._shape, np.uint8)
        # Every view of the array, in NumPy and in JAX, refers to `holder`.
        holder: Any = (ctypes.c_uint8 * memory.nbytes).from_buffer(memory.data)
        weakref.finalize(holder, self._free.append, memory).atexit = False
        return np.frombuffer(holder, np.uint8).reshape(self._shape)


@dataclasses.dataclass
class Chunk:
    """Rows of one batch that are filled together, and the outcome of each.

    Attributes:
        batch: that they belong to.
        rows, records: int [k], rows of the batch and the records that fill them.
        shrunk: how many images were larger than the canvas.
        corrupt: those records, and ones that were tried instead, that cannot be decoded.
    """

    batch: Batch
    rows: np.ndarray
    records: np.ndarray
    shrunk: int = 0
    corrupt: Reasons = dataclasses.field(default_factory=dict)


class Plan:
    """The batches to fill, in order, cut into chunks of at most `size` rows, by number.

    Safe to call from several threads: whoever is first to want a chunk moves the plan on.
    """

    def __init__(self, jobs: Iterator[Job], size: int):
        self._jobs = jobs
        self._size = size
        self._lock = threading.Lock()
        self._chunks: dict[int, Chunk] = {}
        self._batches: collections.deque = collections.deque()
        self._made = 0
        self._error: BaseException | None = None

    def chunk(self, number: int) -> Chunk | None:
        """A chunk of a batch that `next_batch` has yet to return, or returned last; None past
        the end of the plan."""
        with self._lock:
            while number >= self._made and self._extend():
                pass
            return self._chunks.get(number)

    def next_batch(self) -> tuple[Batch, list[tuple[int, Chunk]]] | None:
        """The next batch and its numbered chunks, or None at the end of the plan.

        Raises:
            Exception: what making the batch raised, on whichever thread.
        """
        with self._lock:
            if not self._batches and not self._extend():
                if self._error is not None:
                    raise self._error
                return None
            batch, numbers = self._batches.popleft()
            for number in [n for n in self._chunks if n < numbers.start]:
                del self._chunks[number]
            return batch, [(number, self._chunks[number]) for number in numbers]

    def close(self) -> None:
        """End the plan here."""
        with self._lock:
            self._jobs = iter(())
            self._chunks.clear()
            self._batches.clear()

    def _extend(self) -> bool:
        try:
            batch, rows, records = next(self._jobs)
        except StopIteration:
            return False
        except Exception as error:  # noqa: BLE001 - raised where the batch is wanted
            self._error = error
            return False
        first = self._made
        for start in range(0, len(rows), self._size):
            part = slice(start, start + self._size)
            self._chunks[self._made] = Chunk(batch, rows[part], records[part])
            self._made += 1
        self._batches.append((batch, range(first, self._made)))
        return True


@dataclasses.dataclass(frozen=True)
class Reader:
    """Decodes and fits records into canvas rows.

    Attributes:
        fit: uint8 [h, w, 3] larger than the canvas -> one that fits.
        at_least, max_pixels, exif_orientation: of `decode_image`.
        replace: a corrupt record by the next one; else mask its row.
        known: corrupt records so far, which are not decoded again.
    """

    source: Source
    canvas: int
    fit: Callable[[np.ndarray], np.ndarray]
    at_least: int | None
    max_pixels: int
    exif_orientation: bool
    replace: bool
    known: Reasons = dataclasses.field(default_factory=dict)

    def fill(self, chunk: Chunk) -> None:
        """Read and decode all records of a chunk, one after the other, into their rows."""
        chunk.shrunk, chunk.corrupt = 0, {}
        images, labels = self.source.get(chunk.records)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            self.fill_row(chunk, i, image, label)

    def fill_row(self, chunk: Chunk, i: int, image: Record, label: int) -> None:
        """Decode record i of a chunk into its row; if that cannot be, replace or mask it."""
        record = int(chunk.records[i])
        pixels = self._decode(image, record, chunk.corrupt)
        while pixels is None and self.replace and len(chunk.corrupt) < len(self.source):
            # The next record of the data set: the same on every thread and process.
            record = (record + 1) % len(self.source)
            (image,), (label,) = self.source.get(np.array([record]))
            pixels = self._decode(image, record, chunk.corrupt)
        if pixels is None:
            chunk.batch["canvas"][chunk.rows[i]] = 0
            if not self.replace:
                chunk.batch["mask"][chunk.rows[i]] = False
            return
        # Of a size that the decoder has already reduced, too.
        shrunk = isinstance(image, bytes) and max(frame(image)[:2]) > self.canvas
        self.place(chunk, i, record, label, pixels, shrunk=shrunk)

    def place(
        self, chunk: Chunk, i: int, record: int, label: int, pixels: np.ndarray, *, shrunk: bool
    ) -> None:
        """Write an image into row i of a chunk; `shrunk` if it was larger before decoding."""
        if max(pixels.shape[:2]) > self.canvas:
            pixels, shrunk = self.fit(pixels), True
        chunk.shrunk += shrunk
        batch, row = chunk.batch, chunk.rows[i]
        height, width = pixels.shape[:2]
        canvas = batch["canvas"][row]
        canvas[:height, :width] = pixels
        canvas[:height, width:] = 0
        canvas[height:] = 0
        batch["size"][row] = height, width
        batch["label"][row] = label
        batch["index"][row] = record

    def _decode(self, image: Record, record: int, corrupt: Reasons) -> np.ndarray | None:
        try:
            if record in self.known:
                raise CorruptImage(self.known[record])
            return decode_image(
                image,
                at_least=self.at_least,
                max_pixels=self.max_pixels,
                exif_orientation=self.exif_orientation,
            )
        except CorruptImage as error:
            corrupt[record] = self.known[record] = str(error)
            return None
