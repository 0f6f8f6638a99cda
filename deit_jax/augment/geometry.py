"""Pillow's affine transforms with bicubic resampling, on batches uint8 [n, h, w, 3].

`Image.transform` uses Keys' kernel with a = -1 (its resize has a = -0.5), does
not antialias, truncates, clamps the neighbours at the border and fills where the
centre of a pixel comes from outside (Geometry.c).

The three channels of a pixel travel in one uint32 word, which makes every move
of pixels a third of the work.
"""

import jax
import jax.numpy as jnp

LINE_OPERATIONS = SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y = range(4)


def pack(pixels: jax.Array) -> jax.Array:
    """uint32 [...] of uint8 [..., 3]."""
    red, green, blue = (pixels[..., i].astype(jnp.uint32) for i in range(3))
    return red | (green << 8) | (blue << 16)


def unpack(words: jax.Array) -> jax.Array:
    """uint8 [..., 3] of uint32 [...]."""
    return jnp.stack([(words >> (8 * i)).astype(jnp.uint8) for i in range(3)], axis=-1)


def _channels(words: jax.Array) -> list[jax.Array]:
    return [((words >> (8 * i)) & 255).astype(jnp.float32) for i in range(3)]


def _cubic(v1: jax.Array, v2: jax.Array, v3: jax.Array, v4: jax.Array, d: jax.Array) -> jax.Array:
    """Keys' a = -1 between v2 and v3 in Pillow's order of operations, exact on flat areas."""
    p2 = v3 - v1
    p3 = 2.0 * (v1 - v2) + v3 - v4
    p4 = v2 - v1 - v3 + v4
    return v2 + d * (p2 + d * (p3 + d * p4))


def _to_words(channels: list[jax.Array]) -> jax.Array:
    red, green, blue = (jnp.clip(c, 0.0, 255.0).astype(jnp.uint32) for c in channels)
    return red | (green << 8) | (blue << 16)


def _fill_word(fill: tuple[int, int, int]) -> jax.Array:
    return jnp.uint32(fill[0] | (fill[1] << 8) | (fill[2] << 16))


def _transposed_where(words: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.where(where[:, None, None], jnp.swapaxes(words, 1, 2), words)


def move_lines(
    pixels: jax.Array, kind: jax.Array, amount: jax.Array, *, fill: tuple[int, int, int]
) -> jax.Array:
    """Shear or translate: kind int32 [n] of LINE_OPERATIONS, amount float32 [n].

    amount: the slope of a shear, the share of the side of a translation. Every
    line moves by a shift of its own, so one contiguous slice and four taps per
    line do it; the vertical ones are done on the transposed image. Square images.
    """
    n, side = pixels.shape[:2]
    vertical = (kind == SHEAR_Y) | (kind == TRANSLATE_Y)
    words = _transposed_where(pack(pixels), vertical)
    sheared = (kind == SHEAR_X) | (kind == SHEAR_Y)
    line = jnp.arange(side, dtype=jnp.float32)[None, :] + 0.5
    shift = jnp.where(sheared[:, None], amount[:, None] * line, amount[:, None] * side)
    whole = jnp.floor(shift)
    part = (shift - whole)[:, :, None]
    # Beyond one side everything is fill.
    whole = jnp.clip(whole.astype(jnp.int32), -side, side)
    margin = side + 2
    padded = jnp.pad(words, ((0, 0), (0, 0), (margin, margin)), mode="edge")
    take = jax.vmap(jax.vmap(lambda row, start: jax.lax.dynamic_slice(row, (start,), (side + 3,))))
    slices = take(padded, margin + whole - 1)
    taps = [_channels(slices[:, :, i : i + side]) for i in range(4)]
    moved = _to_words([_cubic(*channel, part) for channel in zip(*taps)])
    centre = jnp.arange(side, dtype=jnp.float32)[None, None, :] + 0.5 + shift[:, :, None]
    words = jnp.where((centre >= 0) & (centre < side), moved, _fill_word(fill))
    return unpack(_transposed_where(words, vertical))


def rotate(pixels: jax.Array, degrees: jax.Array, *, fill: tuple[int, int, int]) -> jax.Array:
    """`Image.rotate(degrees)` about the centre, degrees float32 [n], counter-clockwise."""
    n, height, width = pixels.shape[:3]
    words = pack(pixels).reshape(n, height * width)
    angle = -jnp.deg2rad(degrees)[:, None, None]
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    y = (jnp.arange(height, dtype=jnp.float32) + (0.5 - height / 2.0))[None, :, None]
    x = (jnp.arange(width, dtype=jnp.float32) + (0.5 - width / 2.0))[None, None, :]
    from_x = cosine * x + sine * y + width / 2.0
    from_y = cosine * y - sine * x + height / 2.0
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    part_x, part_y = from_x - 0.5 - left, from_y - 0.5 - top
    left, top = left.astype(jnp.int32) - 1, top.astype(jnp.int32) - 1

    def line(i: int) -> list[jax.Array]:
        start = jnp.clip(top + i, 0, height - 1) * width
        taps = []
        for j in range(4):
            index = (start + jnp.clip(left + j, 0, width - 1)).reshape(n, height * width)
            tap = jnp.take_along_axis(words, index, axis=1)
            taps.append(_channels(tap.reshape(n, height, width)))
        return [_cubic(*channel, part_x) for channel in zip(*taps)]

    lines = [line(i) for i in range(4)]
    turned = _to_words([_cubic(*channel, part_y) for channel in zip(*lines)])
    return unpack(jnp.where(inside, turned, _fill_word(fill)))
