"""A source whose records count several times."""

import numpy as np

from deit_jax.data.source import Record, Source


class Repeated(Source):
    """`times` copies of a small source, one after the other, so that a batch can be filled."""

    def __init__(self, source: Source, times: int):
        self._source = source
        self.times = times
        self.exif_orientation = source.exif_orientation
        self.labels = None if source.labels is None else np.tile(source.labels, times)

    def __len__(self) -> int:
        return len(self._source) * self.times

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        return self._source.get(np.asarray(indices) % len(self._source))

    def record_name(self, index: int) -> str:
        return self._source.record_name(index % len(self._source))
