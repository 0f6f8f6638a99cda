"""Layers that the transformers and the convolutional networks share.

Parameters are f32; each layer casts them to its compute `dtype`. Statistics of
normalization layers are f32 whatever the compute type.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deit_jax.errors import ConfigError, check_at_most
from deit_jax.models import initializers


def fold_keys(keys: jax.Array | None, number: jax.Array | int) -> jax.Array | None:
    """One new key per row: `fold_in(keys[i], number)`; None stays None (no randomness)."""
    if keys is None:
        return None
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def drop_draws(keys: jax.Array | None, blocks: int, branches: int) -> jax.Array | None:
    """Uniform f32 [B, blocks, branches] for `drop_path`, from one key per row; None without keys.

    All blocks at once: separate draws would each compile and run a random bits generator.
    """
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.uniform(key, (blocks, branches)))(fold_keys(keys, 0))


def drop_path(x: jax.Array, draw: jax.Array | None, rate: Any) -> jax.Array:
    """Stochastic depth: whole rows of `x` [B, ...] become 0 with probability `rate`.

    The other rows are divided by 1 - `rate`, so the mean is unchanged.
    `draw` is uniform, f32 [B]. No `draw`, or a `rate` that is the number 0, is the identity.
    `rate` may be a traced f32 scalar.
    """
    if draw is None or (isinstance(rate, (int, float)) and rate == 0):
        return x
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    # In f32: 1/.9 rounded to bf16 would bias every remaining branch by .15 %.
    scale = jnp.where(draw < keep, 1.0 / keep, 0.0).reshape((-1,) + (1,) * (x.ndim - 1))
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Dropout of single values of `x` [B, ...] with one key per row; identity without keys."""
    if keys is None or rate == 0:
        return x
    uniform = jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:]))(keys)
    scale = jnp.where(uniform < 1.0 - rate, 1.0 / (1.0 - rate), 0.0)
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


def check_values(model: Any, *, sizes: tuple[str, ...]) -> None:
    """Raises ConfigError unless the attributes `sizes` are positive and rates in [0, 1)."""
    for name in ("image_size", *sizes):
        values = getattr(model, name)
        if min(values if isinstance(values, tuple) else (values,), default=1) < 1:
            raise ConfigError(f"{name} must be at least 1, not {values}")
        # Blocks are traced one by one.
        check_at_most(1000 if name in ("depth", "depths") else 2**16, **{name: values})
    for name in ("drop_path_rate", "dropout_rate"):
        if not 0 <= getattr(model, name, 0.0) < 1:
            raise ConfigError(f"{name} must be at least 0 and below 1, not {getattr(model, name)}")


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, [..., D] -> [..., D] in `dtype`; f32 statistics."""

    dtype: Any
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return _normalized(x, factor, bias, self.epsilon, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalized(x: jax.Array, factor: jax.Array, bias: jax.Array, epsilon: float, dtype: Any):
    return _normalized_forward(x, factor, bias, epsilon, dtype)[0]


def _normalized_forward(
    x: jax.Array, factor: jax.Array, bias: jax.Array, epsilon: float, dtype: Any
) -> tuple[jax.Array, tuple]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    if x.dtype.itemsize < 4:
        # One pass over x: what f32 loses where the mean is large, half precision had lost before.
        variance = jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean)
        variance = jnp.maximum(variance, 0.0)
    else:
        variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * (inverse * _last(factor, x)) + _last(bias, x)
    return y.astype(dtype), (x, mean, inverse, factor)


def _normalized_backward(epsilon: float, dtype: Any, saved: tuple, gradient: jax.Array) -> tuple:
    """By hand, from x and its statistics: three sums, none of them over values saved in f32."""
    x, mean, inverse, factor = saved
    wide = gradient.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    rows = tuple(range(x.ndim - 1))
    scaled = wide * _last(factor, x)
    along = scaled.mean(-1, keepdims=True)
    across = (scaled * normal).mean(-1, keepdims=True)
    to_x = (inverse * (scaled - along - normal * across)).astype(x.dtype)
    return to_x, (wide * normal).sum(rows), wide.sum(rows)


_normalized.defvjp(_normalized_forward, _normalized_backward)


def _last(parameter: jax.Array, x: jax.Array) -> jax.Array:
    """A parameter [D] with as many axes as `x` [..., D]."""
    return parameter.reshape((1,) * (x.ndim - 1) + parameter.shape)


def group_norm(dtype: Any, group: int, scale_init: Any, name: str) -> nn.GroupNorm:
    """torch's GroupNorm on NHWC with `group` channels per group; f32 statistics."""
    options = {"group_size": group, "scale_init": scale_init, "use_fast_variance": False}
    return nn.GroupNorm(num_groups=None, epsilon=1e-5, dtype=dtype, name=name, **options)


def matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., D] times [D, features] -> [..., features], as one product of two matrices.

    All leading axes are one axis of the product. With several, XLA's CPU backend makes the
    gradient of the kernel by transposing whole activations, and the backward pass takes
    more than twice as long.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def add(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """`x` [..., D] plus an f32 parameter that is broadcast to it, in the type of `x`.

    In f32: the parameter's gradient is the sum of all broadcast places, and a sum of thousands
    of bf16 numbers in bf16 stands still once it is 256 times larger than its terms.
    """
    parameter = parameter.reshape((1,) * (x.ndim - parameter.ndim) + parameter.shape)
    return (x.astype(jnp.float32) + parameter).astype(x.dtype)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x times the normal distribution function of x, by erf in f32 as in torch.

    `jax.nn.gelu` takes erfc, which costs a TPU twice as much. Only x is saved for the gradient.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5))


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    slope = _normal_cdf(wide) + wide * density
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def scale(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """`x` [..., D] times an f32 parameter [D], in the type of `x`; in f32 as in `add`."""
    return (x.astype(jnp.float32) * _last(parameter, x)).astype(x.dtype)


class Dense(nn.Module):
    """[..., D] -> [..., features]: a matrix product and a bias."""

    features: int
    dtype: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return add(*self.parts(x))

    @nn.compact
    def parts(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The product alone, and the f32 bias [features] for `add`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", initializers.normal(0.02), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        return matrix_product(x.astype(self.dtype), kernel), bias


def patch_product(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, h, w, C] times [P, P, C, D], patch by patch -> [B, (h/P)(w/P), D], row by row.

    A convolution of stride P, for which a TPU's compiler moves no pixels (1 us an image by its
    estimate, 18 as a product of matrices). Elsewhere a product of matrices: convolutions whose
    stride equals their kernel hit slow cuDNN paths.
    """
    return jax.lax.platform_dependent(
        image, kernel, tpu=_convolved_patches, default=_multiplied_patches
    )


def _convolved_patches(image: jax.Array, kernel: jax.Array) -> jax.Array:
    stride, order = kernel.shape[:2], ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(image, kernel, stride, "VALID", dimension_numbers=order)
    return x.reshape(image.shape[0], -1, kernel.shape[-1])


def _multiplied_patches(image: jax.Array, kernel: jax.Array) -> jax.Array:
    size, dim = kernel.shape[0], kernel.shape[-1]
    rows, height, width, channels = image.shape
    grid_h, grid_w = height // size, width // size
    x = image.reshape(rows, grid_h, size, grid_w, size, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(rows, grid_h * grid_w, -1)
    return matrix_product(x, kernel.reshape(-1, dim))


class PatchEmbed(nn.Module):
    """Image f32 [B, h, w, 3] -> tokens [B, (h/P)(w/P), D], row by row.

    `kernel` is HWIO [P, P, 3, D]; kernel and bias start at torch's U(+-1/sqrt(3 P^2)).
    """

    patch_size: int
    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        size, dim = self.patch_size, self.embed_dim
        channels = image.shape[-1]
        bound = (size * size * channels) ** -0.5
        kernel = self.param("kernel", initializers.uniform(bound), (size, size, channels, dim))
        bias = self.param("bias", initializers.uniform(bound), (dim,))
        x = patch_product(image.astype(self.dtype), kernel.astype(self.dtype))
        return add(x, bias)


class BatchNorm(nn.Module):
    """torch's BatchNorm2d on NHWC: batch statistics in training, running statistics in evaluation.

    The running variance takes the unbiased batch variance (n - 1), as torch's does;
    `momentum` is torch's (running = (1 - momentum) running + momentum batch).
    Under `jit` the batch is the global batch, however many devices share it.
    Running statistics: `mean`, `var` [C] f32 in the collection `batch_stats`.
    """

    dtype: Any
    epsilon: float = 1e-5
    momentum: float = 0.1
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = x.shape[-1]
        scale = self.param("scale", self.scale_init, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if train:
            mean, var = _moments(x)
            if not self.is_initializing():
                count = x.size // features
                unbiased = var * (count / max(count - 1, 1))
                m = self.momentum
                running_mean.value = (1 - m) * running_mean.value + m * mean
                running_var.value = (1 - m) * running_var.value + m * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = jax.lax.rsqrt(var + self.epsilon) * scale
        shape = (1,) * (x.ndim - 1) + (-1,)
        y = x.astype(jnp.float32) * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
        return y.astype(self.dtype)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over all axes but the last, f32, two passes."""
    axes = tuple(range(x.ndim - 1))
    x = x.astype(jnp.float32)
    mean = x.mean(axes, keepdims=True)
    return mean.reshape(-1), jnp.square(x - mean).mean(axes)
