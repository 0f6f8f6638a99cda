"""Pillow's antialiased bicubic resize on the host, exact to the bit (Pillow < 13).

Two passes, columns first, each a weighted sum in 22-bit fixed point that is rounded and
clipped to uint8. The device does the usual resizing; this serves the few images that
exceed the canvas. The weights are sparse matrices of integers: seven times cheaper than
gathering the taps, and exact, since the sums stay below 2**31.
"""

import functools

import numpy as np

_BITS = 22
_SUPPORT = 2.0


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.lru_cache(maxsize=256)
def _weights(size: int, new_size: int, channels: int = 1):
    """Fixed-point weights as a sparse int32 matrix [new_size * channels, size * channels].

    With `channels` the matrix acts on interleaved channels and keeps them apart.
    """
    import scipy.sparse

    scale = size / new_size
    widen = max(scale, 1.0)
    support = _SUPPORT * widen
    center = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), size)
    taps = np.arange(int((last - first).max()))
    position = first[:, None] + taps
    weight = _bicubic((position - center[:, None] + 0.5) * (1.0 / widen))
    weight = np.where(position < last[:, None], weight, 0.0)
    # Added up from left to right as Pillow does; NumPy's pairwise sum may end elsewhere.
    weight /= np.add.accumulate(weight, axis=1)[:, -1:]
    fixed = np.trunc(weight * (1 << _BITS) + np.where(weight < 0, -0.5, 0.5)).astype(np.int32)
    # Taps beyond the edge stay, with weight zero, so that every row has equally many.
    position = np.minimum(position, size - 1).astype(np.int32)
    channel = np.arange(channels, dtype=np.int32)
    columns = position[:, None] * np.int32(channels) + channel[:, None]
    entries = np.broadcast_to(fixed[:, None], columns.shape)
    row_starts = np.arange(new_size * channels + 1, dtype=np.int32) * len(taps)
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
    """The image, shrunk with its aspect kept until its longer side is `canvas`."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest <= canvas:
        return image
    new_height = max(1, round(height * canvas / longest))
    new_width = max(1, round(width * canvas / longest))
    return resize_bicubic(image, new_height, new_width)


def resized_shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width after torchvision's `Resize(short)`: the long side is truncated."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def evaluation_square(image: np.ndarray, *, short: int, image_size: int) -> np.ndarray:
    """What of an image larger than the canvas evaluation needs, uint8 [short, short, 3].

    Resized as Pillow does, then cut along the long side so that the centre crop of
    `image_size` pixels out of this square is the centre crop of the whole image
    (torchvision rounds its offset half to even, so the cut is not always central).
    """
    height, width = resized_shape(*image.shape[:2], short)
    image = resize_bicubic(image, height, width)
    inner = round((short - image_size) / 2)
    top = round((height - image_size) / 2) - inner
    left = round((width - image_size) / 2) - inner
    return image[top : top + short, left : left + short]
