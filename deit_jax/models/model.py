"""The interface of a model; a new family inherits a default for every member."""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.errors import ConfigError
from deit_jax.models.count import Size, trace

# The output of a layer is saved before and after its normalization and after the activation.
_SAVED_PER_OUTPUT = 3.0


class Output(NamedTuple):
    """What every model returns: logits of its heads, f32 [B, K].

    Attributes:
      logits: of the class token's head, or of the only head.
      dist_logits: of the distillation token's head; None where there is none.
    """

    logits: jax.Array
    dist_logits: jax.Array | None


class Model(nn.Module, kw_only=True):
    """A classifier of images, and what training, evaluation and `explain` need of it.

    A family is a subclass with its attributes, `__call__` and `check`; everything else has a
    default that holds for a network with one head called `head`. Parameters called
    `kernel` have weight decay, those called `bias` or `scale` have none.

    Attributes:
      num_classes: K.
      image_size: (height, width) in pixels.
      dtype: compute type; parameters, statistics and logits are f32.

    A family overrides as class attributes or properties:
      heads: whose logits `Output` holds: `class`, and `dist` for `dist_logits`.
      head_params: parameters of the heads, by first name: what a model for other classes
        starts afresh.
      optional_params: parameters that not every model of the family has, by first name. A
        checkpoint's are dropped where the new model has none, and started afresh where only
        the new model has them.
      no_weight_decay: last names of own parameters without weight decay, besides biases,
        scales and tokens.
      undetermined: attributes that change the outputs and not the shapes of the parameters, so
        that a file of weights alone does not determine them.
      num_layers: number of the head's layer, the last, see `layer_of`; 0 without numbers.
      recomputed_passes: forward passes (0 or 1) that are repeated in the backward pass.
    """

    heads: ClassVar[tuple[str, ...]] = ("class",)
    head_params: ClassVar[tuple[str, ...]] = ("head",)
    optional_params: ClassVar[tuple[str, ...]] = ()
    no_weight_decay: ClassVar[tuple[str, ...]] = ()
    undetermined: ClassVar[tuple[str, ...]] = ()
    num_layers: ClassVar[int] = 0
    recomputed_passes: ClassVar[int] = 0

    num_classes: int
    image_size: tuple[int, int]
    dtype: str = "float32"

    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
        capture: bool = False,
    ) -> tuple[Output, dict[str, jax.Array]]:
        """Normalized images f32 [B, h, w, 3] -> (Output, intermediates); see `models.apply`.

        `keys` [B] are None without randomness, and ignored in evaluation. The intermediates
        are `{}` unless `capture`.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raises ConfigError when the attributes do not fit together."""

    def check_device(self, device: Any = None) -> None:
        """Raises ConfigError when the model cannot run on a device, by default jax's first."""

    @property
    def stochastic(self) -> bool:
        """Whether training needs `keys`: by default, with stochastic depth or dropout."""
        return any(getattr(self, name, 0.0) > 0 for name in ("drop_path_rate", "dropout_rate"))

    @property
    def has_batch_stats(self) -> bool:
        """Whether there are running statistics (BatchNorm), which training updates."""
        return "batch_stats" in trace(self).collections

    def layer_of(self, path: str) -> int | None:
        """timm's layer number of a parameter, for layer decay: embedding 0, blocks from 1.

        None for a parameter without a number; `path` is `/`-joined, as 'blocks_0/mlp/fc1/bias'.
        """
        return None

    def count(self) -> Size:
        """Parameters and multiply-accumulates; nothing is computed."""
        return trace(self).size

    def saved_bytes(self, device: Any = None) -> float:
        """Bytes that one image's forward pass saves for the backward pass (upper estimate).

        `device`, by default jax's first, decides what `auto` stands for, see `accelerator`.
        """
        return _SAVED_PER_OUTPUT * trace(self).outputs * jnp.dtype(self.dtype).itemsize

    def recomputed_bytes(self, device: Any = None) -> float:
        """Bytes of one image that the backward pass computes again, the most at a time."""
        return 0.0

    def fit_param(
        self, path: str, value: np.ndarray, old: "Model", fresh: np.ndarray | None
    ) -> tuple[np.ndarray, str]:
        """Parameter `path` of the model `old` as this model has it, and how it was resized or ''.

        `fresh` is this model's own initial value, None without one.
        """
        return value, ""

    def embeddings(self, features: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """f32 [B, D] by name from the intermediates of a forward pass: the input of the heads.

        Raises:
          ConfigError: the family has none.
        """
        raise ConfigError(f"{type(self).__name__} has no embeddings (Model.embeddings)")

    def without_batch_norm(self) -> "Model":
        """The model that `fold_batch_norm` returns."""
        return self

    def fold_batch_norm(self, variables: dict[str, Any]) -> tuple["Model", dict[str, Any]]:
        """(model, variables) of the same function with BatchNorm folded into other layers.

        For frozen teachers. A model that cannot do that is returned unchanged.
        """
        return self, variables
