"""Antialiased bicubic resize on the host, for the few images that exceed the canvas.

The device does the usual resizing. `resize_bicubic` is Pillow's to the bit (Pillow < 13): two
passes, columns first, each a weighted sum in 22-bit fixed point that is rounded and clipped to
uint8; evaluation uses it. `fit_within` has the same kernel in float32 without rounding in
between, at two thirds of the cost; training uses it. The weights are sparse matrices, several
times cheaper than gathering the taps.
"""

import functools

import numpy as np

from deit_jax.cubic import cubic_kernel

_BITS = 22


def _taps(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Source positions int32 and weights float64 of each output, both [new_size, taps]."""
    scale = size / new_size
    widen = max(scale, 1.0)
    support = 2.0 * widen
    center = (np.arange(new_size) + 0.5) * scale
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
def _weights(size: int, new_size: int, channels: int = 1, dtype: type = np.int32):
    """Sparse matrix [new_size * channels, size * channels], in 22-bit fixed point if integer.

    With `channels` the matrix acts on interleaved channels separately.
    """
    import scipy.sparse

    position, weight = _taps(size, new_size)
    if dtype is np.int32:
        # Rounded half away from zero, as Pillow does.
        weight = np.trunc(weight * (1 << _BITS) + np.where(weight < 0, -0.5, 0.5))
    weight = weight.astype(dtype)
    channel = np.arange(channels, dtype=np.int32)
    columns = position[:, None] * np.int32(channels) + channel[:, None]
    entries = np.broadcast_to(weight[:, None], columns.shape)
    row_starts = np.arange(new_size * channels + 1, dtype=np.int32) * weight.shape[1]
    shape = (new_size * channels, size * channels)
    return scipy.sparse.csr_array((entries.ravel(), columns.ravel(), row_starts), shape=shape)


def _pass(weights, samples: np.ndarray) -> np.ndarray:
    """uint8 [size, n] -> uint8 [new_size, n], rounded and clipped."""
    total = weights @ samples.astype(np.int32)
    total += 1 << (_BITS - 1)
    total >>= _BITS
    np.clip(total, 0, 255, out=total)
    return total.astype(np.uint8)


def resize_bicubic(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3], equal to `Image.resize(..., BICUBIC)`."""
    old_height, old_width, channels = image.shape
    if old_width != width:
        columns = np.ascontiguousarray(image.reshape(old_height, -1).T)
        columns = _pass(_weights(old_width, width, channels), columns)
        image = np.ascontiguousarray(columns.T).reshape(old_height, width, channels)
    if old_height != height:
        rows = _pass(_weights(old_height, height), image.reshape(old_height, -1))
        image = rows.reshape(height, width, channels)
    return image


def fit_within(image: np.ndarray, canvas: int) -> np.ndarray:
    """uint8 [h, w, 3] shrunk at its aspect ratio to a longer side of `canvas`, if it is longer."""
    old_height, old_width, channels = image.shape
    longest = max(old_height, old_width)
    if longest <= canvas:
        return image
    height = max(1, round(old_height * canvas / longest))
    width = max(1, round(old_width * canvas / longest))
    samples = image.reshape(old_height, -1).astype(np.float32)
    rows = _weights(old_height, height, 1, np.float32) @ samples
    columns = _weights(old_width, width, channels, np.float32) @ np.ascontiguousarray(rows.T)
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
    image = resize_bicubic(image, height, width)
    inner = round((short - image_size) / 2)
    top = round((height - image_size) / 2) - inner
    left = round((width - image_size) / 2) - inner
    return image[top : top + short, left : left + short]
