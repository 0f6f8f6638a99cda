"""RegNetY (arXiv 2003.13678), the convolutional teachers of DeiT.

A stem convolution, then stages of bottleneck blocks: 1x1, grouped 3x3,
squeeze-and-excitation, 1x1, shortcut. Names and numbers are timm's.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.errors import ConfigError, check_at_most, unknown
from deit_jax.models import initializers, layers
from deit_jax.models.model import Model, Output

ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}


def stage_design(
    *, w0: int, wa: float, wm: float, depth: int, group_size: int, min_share: float = 0.0
) -> dict[str, tuple[int, ...]]:
    """Widths, depths and group sizes of the stages from the design parameters (section 3.3).

    Widths on the line w0 + wa * block are rounded to w0 * wm^k, then to multiples of 8,
    then to multiples of the group size. With `min_share`, as in torchvision, halves are
    rounded up and no width ends below that share of what it was.
    """
    # f32 as in the reference implementation: the roundings decide the architecture.
    line = np.arange(depth, dtype=np.float32) * np.float32(wa) + np.float32(w0)
    exponent = np.round(np.log(line / np.float32(w0)) / np.float32(math.log(wm)))
    widths = np.round(w0 * np.power(np.float32(wm), exponent) / 8) * 8
    stages, depths = np.unique(widths.astype(int), return_counts=True)
    groups = np.minimum(stages, group_size)
    counts = np.round(stages / groups)
    if min_share:
        counts = np.floor(stages / groups + 0.5)
        counts += counts * groups < min_share * stages
    widths = counts.astype(int) * groups
    design = {"widths": widths, "depths": depths, "group_sizes": groups}
    return {name: tuple(values.tolist()) for name, values in design.items()}


class Conv(nn.Module):
    """Convolution on NHWC with torch's symmetric padding k // 2; `kernel` HWIO [k, k, I/groups, O].

    A size of 1 is a matrix product: convolutions have slow gradients on CPU.
    """

    features: int
    size: int
    dtype: Any
    stride: int = 1
    groups: int = 1
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        fan_out = self.size * self.size * self.features // self.groups
        kernel = self.param("kernel", initializers.normal(math.sqrt(2.0 / fan_out)), shape)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        if self.size == 1 and self.groups == 1:
            x = x[:, :: self.stride, :: self.stride]
            y = layers.matrix_product(x, kernel.reshape(shape[2:]))
        else:
            # 'SAME' would pad (0, 1) at stride 2 and even sizes: half a pixel off.
            pad = self.size // 2
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=((pad, pad), (pad, pad)),
                feature_group_count=self.groups,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = layers.add(y, bias)
        return y


class ConvNorm(nn.Module):
    """`conv`, then the normalization `bn` unless it is folded into the convolution's bias."""

    features: int
    size: int
    dtype: Any
    folded: bool
    norm_group: int | None = None
    stride: int = 1
    groups: int = 1
    zero_scale: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = functools.partial(Conv, stride=self.stride, groups=self.groups, use_bias=self.folded)
        x = conv(self.features, self.size, self.dtype, name="conv")(x)
        if self.folded:
            return x
        init = nn.initializers.zeros if self.zero_scale else nn.initializers.ones
        if self.norm_group:
            return layers.group_norm(self.dtype, self.norm_group, init, "bn")(x)
        return layers.BatchNorm(self.dtype, scale_init=init, name="bn")(x, train)


class SqueezeExcite(nn.Module):
    """Channels of x [B, h, w, C] scaled by a gate from their mean over space."""

    reduced: int
    dtype: Any
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        gate = Conv(self.reduced, 1, self.dtype, use_bias=True, name="fc1")(gate)
        gate = ACTIVATIONS[self.activation](gate)
        gate = Conv(x.shape[-1], 1, self.dtype, use_bias=True, name="fc2")(gate)
        # In f32, as in `layers.scale`: a gate's gradient is a sum over space.
        return (x.astype(jnp.float32) * nn.sigmoid(gate.astype(jnp.float32))).astype(x.dtype)


class Bottleneck(nn.Module):
    """[B, h, w, I] -> [B, h/stride, w/stride, features]; `draw` as in `layers.drop_path`."""

    features: int
    group_size: int
    stride: int
    se_ratio: float
    dtype: Any
    folded: bool
    norm_group: int | None
    activation: str

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, draw: jax.Array | None, drop_rate: float
    ) -> jax.Array:
        own = {"dtype": self.dtype, "folded": self.folded, "norm_group": self.norm_group}
        conv = functools.partial(ConvNorm, self.features, **own)
        act = ACTIVATIONS[self.activation]
        groups = self.features // self.group_size
        shortcut = x
        y = act(conv(1, name="conv1")(x, train))
        y = act(conv(3, stride=self.stride, groups=groups, name="conv2")(y, train))
        # The reduced width follows the block's input, not its own width.
        reduced = round(x.shape[-1] * self.se_ratio)
        y = SqueezeExcite(reduced, self.dtype, self.activation, name="se")(y)
        y = conv(1, zero_scale=True, name="conv3")(y, train)
        if x.shape[-1] != self.features or self.stride != 1:
            shortcut = conv(1, stride=self.stride, name="downsample")(x, train)
        return act(layers.drop_path(y, draw, drop_rate) + shortcut)


class RegNet(Model, kw_only=True):
    """RegNetY convolutional network, DeiT's teacher.

    Normalized image f32 [B, h, w, 3] -> `Output(logits [B, K], None)`; images of another size
    than `image_size` can be applied too.

    Attributes:
      widths, depths, group_sizes: channels, blocks and channels per group of each stage.
      strides: of the first block of each stage.
      stem_width, stem_stride: of the 3x3 convolution in front.
      se_ratio: reduction of squeeze-and-excitation, of the block's input channels.
      drop_path_rate: of the last block; it rises linearly over the blocks.
      activation: a name in `ACTIVATIONS`.
      norm_group: channels per group of GroupNorm; None for BatchNorm.
      folded: BatchNorm is folded into the convolutions (`fold_batch_norm`); evaluation only.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    group_sizes: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 2, 2)
    stem_width: int = 32
    stem_stride: int = 2
    se_ratio: float = 0.25
    drop_path_rate: float = 0.0
    activation: str = "relu"
    norm_group: int | None = None
    folded: bool = False

    def check(self) -> None:
        """Raises ConfigError when the attributes do not fit together."""
        stages = ("widths", "depths", "group_sizes", "strides")
        lengths = {name: len(getattr(self, name)) for name in stages}
        if len(set(lengths.values())) != 1:
            raise ConfigError(
                f"widths, depths, group_sizes and strides need one entry per stage, not {lengths}"
            )
        layers.check_values(self, sizes=("stem_width", "stem_stride", *lengths))
        check_at_most(100, se_ratio=self.se_ratio)
        if round(min((self.stem_width, *self.widths)) * self.se_ratio) < 1:
            raise ConfigError(f"se_ratio {self.se_ratio} leaves no channels")
        for width, group in zip(self.widths, self.group_sizes, strict=True):
            if width % group:
                raise ConfigError(f"width {width} is not a multiple of its group size {group}")
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        if self.norm_group is not None:
            group, widths = self.norm_group, (self.stem_width, *self.widths)
            if group < 1 or any(width % group for width in widths):
                raise ConfigError(f"norm_group {group} does not divide the widths {widths}")
            if self.folded:
                raise ConfigError("GroupNorm, of norm_group, cannot be folded")

    def without_batch_norm(self) -> "RegNet":
        """See `Model.without_batch_norm`."""
        return self if self.norm_group else self.clone(folded=True)

    def fold_batch_norm(self, variables: dict[str, Any]) -> tuple["RegNet", dict[str, Any]]:
        """BatchNorm's scale and shift move into the convolutions; logits agree to rounding.

        A model with GroupNorm is returned unchanged. The variables returned have no `batch_stats`.
        Raises ValueError for a model that is folded already.
        """
        if self.norm_group:
            return self, variables
        if self.folded:
            raise ValueError("the BatchNorm of this model is folded already")

        def fold(params, stats):
            if "bn" in params:
                scale, bias = params["bn"]["scale"], params["bn"]["bias"]
                factor = scale / np.sqrt(stats["bn"]["var"] + layers.BatchNorm.epsilon)
                kernel = params["conv"]["kernel"] * factor.reshape(1, 1, 1, -1)
                return {"conv": {"kernel": kernel, "bias": bias - stats["bn"]["mean"] * factor}}
            return {
                name: fold(child, stats.get(name, {})) if isinstance(child, dict) else child
                for name, child in params.items()
            }

        params = fold(variables["params"], variables["batch_stats"])
        return self.without_batch_norm(), {"params": params}

    def embeddings(self, features: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """See `Model.embeddings`; the mean over all positions, which the head takes."""
        last = features[f"s{len(self.depths)}_b{self.depths[-1]}"]
        return {"patch_mean": last.astype(jnp.float32).mean((1, 2))}

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
        capture: bool = False,
    ) -> tuple[Output, dict[str, jax.Array]]:
        """See `Model`."""
        if train and self.folded:
            raise ValueError("a model with folded BatchNorm cannot be trained")
        draws = layers.drop_draws(keys if train else None, sum(self.depths), 1)
        names = ("dtype", "folded", "norm_group")
        own = {name: getattr(self, name) for name in names}
        stem = ConvNorm(self.stem_width, 3, stride=self.stem_stride, name="stem", **own)
        x = ACTIVATIONS[self.activation](stem(image.astype(self.dtype), train))
        features = {"stem": x} if capture else {}
        blocks = [(stage, b) for stage, depth in enumerate(self.depths) for b in range(depth)]
        for index, (stage, b) in enumerate(blocks):
            name = f"s{stage + 1}_b{b + 1}"
            draw = None if draws is None else draws[:, index, 0]
            x = Bottleneck(
                features=self.widths[stage],
                group_size=self.group_sizes[stage],
                stride=self.strides[stage] if b == 0 else 1,
                se_ratio=self.se_ratio,
                activation=self.activation,
                name=name,
                **own,
            )(x, train, draw, self.drop_path_rate * index / max(len(blocks) - 1, 1))
            if capture:
                features[name] = x
        x = x.astype(jnp.float32).mean((1, 2))
        head = nn.Dense(self.num_classes, kernel_init=initializers.normal(0.01), name="head")
        return Output(head(x), None), features
