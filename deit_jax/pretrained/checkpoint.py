"""A checkpoint: its model, classes and image statistics; and with its arrays in memory."""

import dataclasses
from typing import Any

from deit_jax.models import Model, create_model


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint without its arrays.

    Attributes:
      model: registered name.
      model_kwargs: further arguments of `create_model`.
      class_names: K names, or None where the file has none.
      source: path that was read, or the name of a published checkpoint.
      format: `timm`, `facebook`, `hf`, `hf-modules`, `mmpretrain`, `deit_jax`, or
        `published` (described without a download).
      image: `size` (height, width), `mean`, `std`, `crop_ratio` of the evaluation.
      metadata: what else a checkpoint of ours holds.
      selection: what `which` and `ema` selected of a source with several weights, for the
        screen; "" where there was nothing to select, or the latest raw weights of a run.
      assumed: what the file does not record and was assumed, for the screen; "" for nothing.
    """

    model: str
    model_kwargs: dict[str, Any]
    class_names: tuple[str, ...] | None
    source: str
    format: str
    image: dict[str, Any]
    metadata: dict[str, Any]
    selection: str = ""
    assumed: str = ""

    @property
    def num_classes(self) -> int:
        """K."""
        return self.create_model().num_classes

    @property
    def mean(self) -> tuple[float, float, float]:
        """Mean per channel of the pixels / 255, subtracted before the model."""
        return tuple(self.image["mean"])

    @property
    def std(self) -> tuple[float, float, float]:
        """Standard deviation per channel of the pixels / 255, divided by before the model."""
        return tuple(self.image["std"])

    @property
    def label(self) -> str:
        """Where the weights are from, for the screen."""
        return self.selection or self.source

    def create_model(self, **overrides: Any) -> Model:
        """The model of this checkpoint, on whatever device it is used."""
        kwargs = {key: value for key, value in self.model_kwargs.items() if key != "attention"}
        return create_model(self.model, **kwargs | overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint(CheckpointInfo):
    """A checkpoint in memory.

    Attributes:
      variables: numpy arrays f32 in the structure of `models.init_variables`.
    """

    variables: dict[str, Any]
