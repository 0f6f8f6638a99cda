"""DeiT-III's 3-Augment (arXiv 2204.07118, section 3.3) and torchvision's color jitter."""

import itertools

import jax
import jax.numpy as jnp

from deit_jax.augment import color, random_bits
from deit_jax.augment.routing import Route, apply_routes

GRAYSCALE, SOLARIZE, BLUR = range(3)
SOLARIZE_THRESHOLD = 128
BLUR_SIGMA = (0.1, 2.0)
BLUR_PASSES = 3
REACH = 2  # pixels; the box of a sigma up to 2 has a radius of 1.375


def _box_weights(sigma: jax.Array) -> list[jax.Array]:
    """Weights uint32 of 2^24, each [n], at distances 0 to REACH in one of three boxes.

    Pillow approximates a Gaussian of `sigma` by three box blurs with soft edges (BoxBlur.c).
    """
    variance = sigma * sigma / BLUR_PASSES
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    soft = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance)
    radius = whole + soft / (6.0 * (variance - (whole + 1.0) ** 2))
    whole = jnp.floor(radius).astype(jnp.int32)
    inner = (2.0**24 / (2.0 * radius + 1.0)).astype(jnp.uint32)
    edge = (jnp.uint32(1 << 24) - (2 * whole + 1).astype(jnp.uint32) * inner) // 2
    distances = range(REACH + 1)
    return [jnp.where(i <= whole, inner, jnp.where(i == whole + 1, edge, 0)) for i in distances]


def gaussian_blur(pixels: jax.Array, sigma: jax.Array) -> jax.Array:
    """`ImageFilter.GaussianBlur(sigma)` for uint8 [n, h, w, 3], sigma float32 [n] up to 2."""
    weights = [weight[:, None, None, None] for weight in _box_weights(sigma)]
    levels = pixels.astype(jnp.uint32)
    for axis in BLUR_PASSES * (2,) + BLUR_PASSES * (1,):
        padding = [(REACH, REACH) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(levels, padding, mode="edge")
        total = jnp.uint32(0)
        for i in range(2 * REACH + 1):
            tap = jax.lax.slice_in_dim(padded, i, i + levels.shape[axis], axis=axis)
            total = total + tap * weights[abs(i - REACH)]
        levels = (total + (1 << 23)) >> 24
    return levels.astype(jnp.uint8)


def three_augment(keys: jax.Array, pixels: jax.Array) -> jax.Array:
    """3-Augment (DeiT-III): each image grayscale, solarized at 128 or blurred (sigma 0.1 to 2).

    Pixels uint8 [n, h, w, 3], one key per image.
    """
    words = random_bits.words(keys, 2)
    choice = random_bits.integer(words[:, 0], jnp.int32(2))
    sigma = random_bits.between(words[:, 1], *BLUR_SIGMA)
    numbers = color.neutral(len(pixels))
    gray = choice == GRAYSCALE
    numbers = numbers._replace(
        threshold=jnp.where(choice == SOLARIZE, SOLARIZE_THRESHOLD, numbers.threshold),
        base=jnp.where(gray, color.GRAY, numbers.base),
        factor=jnp.where(gray, 0.0, numbers.factor),
    )
    pixels = color.pointwise(pixels, numbers)
    return apply_routes(pixels, [Route(choice == BLUR, 1 / 3, gaussian_blur, (sigma,))])


def color_jitter(keys: jax.Array, pixels: jax.Array, *, strength: float) -> jax.Array:
    """Color jitter: brightness, contrast and saturation in random order.

    torchvision `ColorJitter(strength, strength, strength)` of uint8 [n, h, w, 3]: each factor is
    uniform in [max(0, 1 - strength), 1 + strength]; uint8 in between, as in PIL.
    """
    words = random_bits.words(keys, 4)
    orders = jnp.array(list(itertools.permutations((color.BLACK, color.MEAN, color.GRAY))))
    bases = orders[random_bits.integer(words[:, 0], jnp.int32(len(orders) - 1))]
    factors = random_bits.between(words[:, 1:], max(0.0, 1.0 - strength), 1.0 + strength)

    def step(pixels: jax.Array, drawn: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        base, factor = drawn
        numbers = color.neutral(len(pixels))._replace(base=base, factor=factor)
        return color.pointwise(pixels, numbers), None

    return jax.lax.scan(step, pixels, (bases.T, factors.T))[0]
