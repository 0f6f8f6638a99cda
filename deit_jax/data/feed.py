"""The tf.data graph that reads, decodes and places encoded images.

    number -> fetch (Python: read the records of a chunk) -> decode (C++, every image on its own)
           -> place (Python: copy them into rows of the canvases) -> number

A chunk enters Python twice, and reading and copying release the interpreter's lock. The graph
hands over numbers, not images: canvases that tf.data pads and batches are fresh memory for every
batch, which costs more than decoding. A chunk that fails is filled again outside of the graph,
image by image, where the record that is corrupt is found.
"""

import contextlib
import functools
import logging
import threading
from typing import Any, NamedTuple

import numpy as np

from deit_jax.data._tensorflow import tensorflow
from deit_jax.data.canvases import Chunk, Plan, Reader
from deit_jax.data.decode import GRAPH_DECODERS, decoder_name
from deit_jax.data.exif import upright
from deit_jax.data.headers import pixel_count
from deit_jax.data.source import CorruptImage, Record
from deit_jax.distributed import host_memory

_LOG = logging.getLogger(__name__)
# Images that are read and handed over together.
CHUNK = 32
_DECODERS = list(GRAPH_DECODERS)
# Of a decoded image. All images of a chunk are in memory at once, 3 bytes a pixel, so the graph
# uses at most 96 MiB a chunk; larger ones are decoded one at a time, in Python,
_MOST_PIXELS = 2**20
# and still larger ones one at a time in the process.
_MOST_PIXELS_AT_ONCE = 2**24


class _Fetched(NamedTuple):
    """A record between reading and placing; without `decoder` it is decoded in Python."""

    image: Record
    label: int
    decoder: str | None


class Feed:
    """Fills the chunks of a plan, in order, on C++ threads.

    Args:
        plan: the chunks, of at most `size` rows.
        reader: fills the rows.
        threads: of the private pool.
        ahead: chunks that are filled before they are waited for.
    """

    def __init__(self, plan: Plan, reader: Reader, *, size: int, threads: int, ahead: int):
        self._plan = plan
        self._reader = reader
        self._size = size
        self._threads = threads
        self._ahead = ahead
        self._fetched: dict[int, list[_Fetched]] = {}
        self._iterator: Any = None
        self._closed = threading.Event()
        self._alone = threading.Lock()

    def wait(self, number: int, chunk: Chunk) -> None:
        """Return when a chunk is filled; chunks are waited for in order, each once."""
        tf = tensorflow()
        if self._iterator is None:
            self._iterator = iter(self._dataset())
        try:
            next(self._iterator)
        except tf.errors.OpError as error:
            self._fetched.pop(number, None)
            self._reader.fill(chunk)
            if not chunk.corrupt:
                _LOG.warning("a chunk that tf.data gave up was filled without it: %s", error)

    def close(self) -> None:
        """End the threads; harmless when repeated."""
        self._closed.set()
        # Waits for the calls that are under way; afterwards no C++ thread enters Python.
        self._iterator = None
        self._plan.close()
        self._fetched.clear()

    def _dataset(self) -> Any:
        tf = tensorflow()
        host_memory.keep_freed_images()
        decode = _chunk_decoder(self._size)

        def fill(number):
            contents, decoders = tf.numpy_function(
                self._fetch, [number], [tf.string, tf.int32], stateful=False
            )
            images = decode(tf.ensure_shape(contents, [self._size]), decoders)
            return tf.numpy_function(self._place, [number, *images], tf.int64, stateful=False)

        options = tf.data.Options()
        options.deterministic = True
        # What runs ahead is given here and does not grow by itself.
        options.autotune.enabled = False
        options.experimental_optimization.inject_prefetch = False
        options.threading.private_threadpool_size = self._threads
        options.threading.max_intra_op_parallelism = 1
        numbers = tf.data.Dataset.range(np.iinfo(np.int64).max)
        filled = numbers.map(
            tf.autograph.experimental.do_not_convert(fill),
            num_parallel_calls=chunks_at_once(self._threads),
        )
        return filled.prefetch(self._ahead).with_options(options)

    def _fetch(self, number: np.int64) -> tuple[np.ndarray, np.ndarray]:
        """Encoded images [size] of a chunk, and which decoder each needs; empty for none."""
        contents = np.full(self._size, b"", object)
        decoders = np.full(self._size, len(_DECODERS), np.int32)
        chunk = None if self._closed.is_set() else self._plan.chunk(int(number))
        if chunk is not None:
            images, labels = self._reader.source.get(chunk.records)
            fetched = self._fetched[int(number)] = []
            for i, image in enumerate(images):
                name = self._graph_decoder(image, int(chunk.records[i]))
                fetched.append(_Fetched(image, int(labels[i]), name))
                if name is not None:
                    contents[i], decoders[i] = image, _DECODERS.index(name)
        return contents, decoders

    def _graph_decoder(self, image: Record, record: int) -> str | None:
        reader = self._reader
        if not isinstance(image, bytes) or record in reader.known:
            return None
        try:
            name = decoder_name(image, at_least=reader.at_least, max_pixels=reader.max_pixels)
        except CorruptImage:
            return None
        ratio = int(name[-1]) if name.startswith("jpeg") else 1
        small = pixel_count(image) <= _MOST_PIXELS * ratio**2
        return name if small and name in GRAPH_DECODERS else None

    def _place(self, number: np.int64, *images: np.ndarray) -> np.int64:
        chunk = None if self._closed.is_set() else self._plan.chunk(int(number))
        if chunk is not None:
            for i, fetched in enumerate(self._fetched.pop(int(number), ())):
                self._place_row(chunk, i, fetched, images[i])
        return number

    def _place_row(self, chunk: Chunk, i: int, fetched: _Fetched, pixels: np.ndarray) -> None:
        image, label, decoder = fetched
        reader = self._reader
        if decoder is None or not isinstance(image, bytes):
            large = isinstance(image, bytes) and pixel_count(image) > _MOST_PIXELS_AT_ONCE
            with self._alone if large else contextlib.nullcontext():
                reader.fill_row(chunk, i, image, label)
            return
        if reader.exif_orientation:
            pixels = upright(pixels, image)
        reduced = decoder.startswith("jpeg") and decoder != "jpeg 1/1"
        reader.place(chunk, i, int(chunk.records[i]), label, pixels, shrunk=reduced)


def chunks_at_once(threads: int) -> int:
    """Chunks under way at the same time: some are read while the images of others are decoded."""
    return 2 + threads // 4


@functools.cache
def _chunk_decoder(size: int) -> Any:
    """Encoded images string [size], decoders int32 [size] -> `size` images uint8 [h, w, 3]."""
    tf = tensorflow()
    scalars = [tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)]

    @tf.function(input_signature=scalars, autograph=False)
    def decode(contents, decoder):
        branches = [functools.partial(function, contents) for function in GRAPH_DECODERS.values()]
        nothing = lambda: tf.zeros([0, 0, 3], tf.uint8)
        return tf.switch_case(decoder, [*branches, nothing])

    def decode_chunk(contents, decoders):
        pairs = zip(tf.unstack(contents, size), tf.unstack(decoders, size), strict=True)
        return [decode(*pair) for pair in pairs]

    return decode_chunk
