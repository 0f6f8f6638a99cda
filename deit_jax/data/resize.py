"""Antialiased bicubic resize on the host, for the few images that exceed the canvas.

The device does the usual resizing. `resize_bicubic` is Pillow's to the bit (Pillow < 13): two
passes, columns first, each a weighted sum in 22-bit fixed point that is rounded and clipped to
uint8; evaluation uses it. `fit_within` has the same kernel in float32 without rounding in
between, at two thirds of the cost; training uses it. The weights are sparse matrices, several
times cheaper than gathering the taps.
"""

import functools

import numpy as np

from deit_jax.data.cubic import cubic_kernel

_BITS = 22


# Rows of the first pass at a time, which bounds its memory.
_BLOCK = 1024


def _taps(size: int, new_size: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Source positions int32 and weights float64 of outputs start..stop, both [n, taps]."""
    scale = size / new_size
    widen = max(scale, 1.0)
    support = 2.0 * widen
    center = (np.arange(start, stop) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), size)
    taps = np.arange(int((last - first).max()))
    position = first[:, None] + taps
    weight = cubic_kernel((position - center[:, None] + 0.5) * (1.0 / widen), -0.5)
    weight = np.where(position < last[:, None], weight, 0.0)
    # Added up from left to right as Pillow does; NumPy's pairwise sum may end elsewhere.
    weight /= np.add.accumulate(weight, axis=1)[:, -1:]
    # Taps beyond the edge stay, with weight zero, so that every output has equally many.
    return np.minimum(position, size - 1).astype(np.int32), weight


@functools.lru_cache(maxsize=256)
def _weights(size: int, new_size: int, channels: int, dtype: type, start: int, stop: int):
    """Outputs start..stop as a sparse matrix, in 22-bit fixed point if integer, and their source.

    The matrix is [(stop - start) * channels, m * channels], where the source is a slice of m
    of the `size` positions; it acts on interleaved channels separately.
    """
    import scipy.sparse

    position, weight = _taps(size, new_size, start, stop)
    source = slice(int(position.min()), int(position.max()) + 1)
    position -= np.int32(source.start)
    if dtype is np.int32:
        # Rounded half away from zero, as Pillow does.
        weight = np.trunc(weight * (1 << _BITS) + np.where(weight < 0, -0.5, 0.5))
    weight = weight.astype(dtype)
    channel = np.arange(channels, dtype=np.int32)
    columns = position[:, None] * np.int32(channels) + channel[:, None]
    entries = np.broadcast_to(weight[:, None], columns.shape)
    row_starts = np.arange((stop - start) * channels + 1, dtype=np.int32) * weight.shape[1]
    shape = ((stop - start) * channels, (source.stop - source.start) * channels)
    matrix = scipy.sparse.csr_array((entries.ravel(), columns.ravel(), row_starts), shape=shape)
    return matrix, source


def _pass(weights, samples: np.ndarray) -> np.ndarray:
    """uint8 [size, n] -> uint8 [new_size, n], rounded and clipped."""
    total = weights @ samples.astype(np.int32)
    total += 1 << (_BITS - 1)
    total >>= _BITS
    np.clip(total, 0, 255, out=total)
    return total.astype(np.uint8)


def resize_bicubic(
    image: np.ndarray, height: int, width: int, box: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3], equal to `Image.resize(..., BICUBIC)`.

    Of that only `box` (top, left, bottom, right), if given, at the cost of what it needs.
    """
    top, left, bottom, right = box or (0, 0, height, width)
    channels = image.shape[2]
    row_weights, source_rows = _weights(image.shape[0], height, 1, np.int32, top, bottom)
    weights, source_columns = _weights(image.shape[1], width, channels, np.int32, left, right)
    image = image[source_rows, source_columns]
    columns = np.empty((len(image), (right - left) * channels), np.uint8)
    for row in range(0, len(image), _BLOCK):
        block = image[row : row + _BLOCK]
        samples = block.transpose(1, 2, 0).reshape(-1, len(block))
        columns[row : row + _BLOCK] = _pass(weights, samples).T
    return _pass(row_weights, columns).reshape(bottom - top, right - left, channels)


def fit_within(image: np.ndarray, canvas: int) -> np.ndarray:
    """uint8 [h, w, 3] shrunk at its aspect ratio to a longer side of `canvas`, if it is longer."""
    old_height, old_width, channels = image.shape
    longest = max(old_height, old_width)
    if longest <= canvas:
        return image
    height = max(1, round(old_height * canvas / longest))
    width = max(1, round(old_width * canvas / longest))
    samples = image.reshape(old_height, -1).astype(np.float32)
    row_weights, _ = _weights(old_height, height, 1, np.float32, 0, height)
    column_weights, _ = _weights(old_width, width, channels, np.float32, 0, width)
    columns = column_weights @ np.ascontiguousarray((row_weights @ samples).T)
    columns += 0.5
    np.clip(columns, 0, 255, out=columns)
    # Left transposed in memory; the copy into the canvas undoes it.
    return columns.astype(np.uint8).T.reshape(height, width, channels)


def resized_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width after torchvision's `Resize(short)`: the long side is truncated."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def evaluation_square(image: np.ndarray, *, short: int, image_size: int) -> np.ndarray:
    """The part of an image larger than the canvas that evaluation needs, uint8 [short, short, 3].

    Resized as Pillow does, then cropped along the long side so that the center crop of
    `image_size` pixels out of this square is the center crop of the whole image
    (torchvision rounds its offset half to even, so the crop is not always central).
    """
    height, width = resized_shape(image.shape[0], image.shape[1], short)
    inner = round((short - image_size) / 2)
    top = round((height - image_size) / 2) - inner
    left = round((width - image_size) / 2) - inner
    return resize_bicubic(image, height, width, (top, left, top + short, left + short))
