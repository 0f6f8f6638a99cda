"""Host batches one after the other, with counts of what was in them."""

import dataclasses
import logging
import os
import weakref
from collections.abc import Callable, Iterator

import numpy as np

from deit_jax.data.canvases import Batch, Chunk, Job, Plan, Reader
from deit_jax.data.decode import MAX_PIXELS
from deit_jax.data.feed import CHUNK, Feed
from deit_jax.errors import ConfigError, check_at_most

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class Health:
    """Counts over all batches returned so far; they only grow.

    Attributes:
        images: images read; a record counts each time that it is read.
        shrunk: of these, those that were larger than the canvas.
        corrupt_names: record number -> name of the records that could not be decoded.
    """

    images: int = 0
    shrunk: int = 0
    corrupt_names: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def corrupt(self) -> int:
        """Different records that could not be decoded."""
        return len(self.corrupt_names)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """How batches are loaded; the batches do not depend on `threads` and `prefetch`.

    Attributes:
        threads: that read and decode; None: one per usable core. Arrays need none.
        prefetch: batches of encoded images that are loaded ahead of the next one.
        max_corrupt_share: of the data set. Records that cannot be decoded are logged and
            counted; more of them than this share are an error, and so are all of them.
        max_pixels: height times width above which an image is not decoded but counts as
            corrupt.

    Raises:
        ConfigError: an option out of range.
    """

    threads: int | None = None
    prefetch: int = 2
    max_corrupt_share: float = 0.001
    max_pixels: int = MAX_PIXELS

    @property
    def thread_count(self) -> int:
        return self.threads or usable_cores()

    def __post_init__(self):
        if self.threads is not None and self.threads < 1:
            raise ConfigError(
                f"threads must be at least 1, or None for one per core, not {self.threads}"
            )
        check_at_most(4096, threads=self.threads)
        check_at_most(1000, prefetch=self.prefetch)
        if self.prefetch < 0:
            raise ConfigError(f"prefetch must be at least 0, not {self.prefetch}")
        if not 0 <= self.max_corrupt_share <= 1:
            raise ConfigError(f"max_corrupt_share must be in [0, 1], not {self.max_corrupt_share}")
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels must be at least 1, not {self.max_pixels}")


class CorruptShareExceeded(ConfigError):
    """More records are damaged than `max_corrupt_share` allows, or all of them."""


class BatchIterator(Iterator[Batch]):
    """Host batches in order.

    Encoded images are loaded ahead by `feed.Feed`; arrays are copied when a batch is asked for.

    Attributes:
        health: counts of images, shrunk images and corrupt records so far.
    """

    def __init__(
        self,
        jobs: Iterator[Job],
        rows: int,
        reader: Reader,
        loading: Loading,
        hints: Iterator[None] | None = None,
    ):
        """`jobs`: batches of `rows` rows; `hints`: moved on after each, so never before the first.

        What a start needs is so read before anything else.
        """
        self.health = Health()
        self._max_corrupt_share = loading.max_corrupt_share
        self._reader = reader
        self._hints = hints or iter(())
        size = max(1, min(CHUNK, rows))
        self._plan = Plan(jobs, size)
        self._feed = Feed(
            self._plan,
            reader,
            size=size,
            threads=loading.thread_count,
            ahead=loading.prefetch * -(-rows // size),
        )
        self._fill: Callable[[int, Chunk], None] | None = None
        self._finalizer = weakref.finalize(self, self._feed.close)

    def __next__(self) -> Batch:
        try:
            planned = self._plan.next_batch()
            if planned is None:
                raise StopIteration
            batch, chunks = planned
            for number, chunk in chunks:
                if self._fill is None:
                    self._fill = self._way_to_fill(chunk)
                self._fill(number, chunk)
                # Counted in order, so that the step at which a run stops does not depend on
                # how far ahead the threads are.
                self.health.images += len(chunk.rows)
                self._account(chunk)
            next(self._hints, None)
        except BaseException:
            self.close()
            raise
        return batch

    def _way_to_fill(self, chunk: Chunk) -> Callable[[int, Chunk], None]:
        """What the first record is decides: arrays need no TensorFlow."""
        (first,), _ = self._reader.source.get(chunk.records[:1])
        if isinstance(first, np.ndarray):
            reader = self._reader
            return lambda number, chunk: reader.fill(chunk)
        return self._feed.wait

    def _account(self, chunk: Chunk) -> None:
        self.health.shrunk += chunk.shrunk
        source, corrupt = self._reader.source, self.health.corrupt_names
        for record, reason in chunk.corrupt.items():
            if record in corrupt:
                continue
            name = corrupt[record] = source.record_name(record)
            _LOG.warning("cannot decode %s, skipped (%d so far): %s", name, len(corrupt), reason)
        if len(corrupt) > self._max_corrupt_share * len(source):
            raise CorruptShareExceeded(
                f"{len(corrupt)} of {len(source)} records cannot be decoded, more than "
                f"max_corrupt_share={self._max_corrupt_share:g} allows: "
                f"{', '.join(list(corrupt.values())[:5])}; repair or remove them, or raise "
                f"max_corrupt_share above {len(corrupt) / len(source):.2g}"
            )
        if len(corrupt) == len(source):
            raise CorruptShareExceeded(
                f"none of the {len(source)} records can be decoded: "
                f"{', '.join(list(corrupt.values())[:5])}"
            )

    def close(self) -> None:
        """Stop the threads; harmless when repeated."""
        self._finalizer()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_) -> None:
        self.close()
