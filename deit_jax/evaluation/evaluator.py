"""A checkpoint on all devices, predicting evaluation sets, without the config of a run."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from deit_jax import data, models, pretrained
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError
from deit_jax.evaluation import agreement, predictions
from deit_jax.evaluation.datasets import EvaluationSet
from deit_jax.evaluation.evaluate import Evaluation
from deit_jax.evaluation.predictions import Predictions


def load_candidates(
    checkpoint: str, *, ema: bool, **options: Any
) -> dict[str, pretrained.LoadedCheckpoint]:
    """The weights by kind: raw, and EMA where a run of ours has it; with `ema` that alone.

    Options as of `pretrained.load_checkpoint`.
    """
    load = functools.partial(pretrained.load_checkpoint, checkpoint, **options)
    if ema:
        return {"EMA": load(ema=True)}
    raw = load()
    has_ema = raw.metadata.get("config", {}).get("step", {}).get("ema_decay", 0.0) > 0
    return {"raw": raw} | ({"EMA": load(ema=True)} if has_ema else {})


def square_side(model: models.Model) -> int:
    """The side in pixels of the images that `model` takes.

    Raises:
      ConfigError: they are not square.
    """
    if model.image_size[0] != model.image_size[1]:
        raise ConfigError(f"only square models are evaluated, not {model.image_size}")
    return model.image_size[0]


class Evaluator:
    """A model of the checkpoint's kind on all devices.

    Args:
      info: the checkpoint, for its statistics of the image and its names.
      model: of the checkpoint, perhaps with another image size or compute type.
      evaluation: see `evaluate.Evaluation`; its batch is rounded up to the devices.
      reading: an `input` section; what `data.eval_batches` takes of it.
    """

    def __init__(
        self,
        info: pretrained.CheckpointInfo,
        model: models.Model,
        evaluation: Evaluation,
        reading: Mapping[str, Any],
    ):
        self._model, self._reading, self._mesh = model, reading, sharding.make_mesh()
        devices = self._mesh.size
        rows = -(-evaluation.batch_size // devices) * devices
        self._evaluation = dataclasses.replace(evaluation, batch_size=rows)
        transform = evaluation.make_transform(info.mean, info.std)
        step = predictions.make_prediction_step(model=model, transform=transform)
        self._step = jax.jit(sharding.on_rows(step, sharding.batch_sharding(self._mesh)))
        self.facts = {
            "checkpoint": info.label,
            "model": info.model,
            "parameters": model.count().parameters,
            "image_size": evaluation.image_size,
            "crop_ratio": evaluation.crop_ratio,
            "dtype": model.dtype,
        }

    @property
    def description(self) -> str:
        """One line for the screen."""
        f = self.facts
        return (
            f"{f['model']} from {f['checkpoint']}, {f['parameters']:,} parameters, at "
            f"{f['image_size']} px, crop ratio {f['crop_ratio']:g}, in {f['dtype']}"
        )

    def predict(
        self, loaded: pretrained.LoadedCheckpoint, evaluation_set: EvaluationSet
    ) -> Predictions:
        """Predictions of these weights for every image of a set."""
        variables = pretrained.adapt(loaded, model=self._model).variables
        variables = jax.device_put(variables, sharding.replicated(self._mesh))
        host = self._evaluation.batches(evaluation_set.data.eval, self._reading)
        rows = sharding.batch_sharding(self._mesh)
        with data.prefetch_to_device(host, lambda b: sharding.to_global(rows, b)) as batches:
            return predictions.predict(self._step, variables, batches)


def score(predicted: Predictions, evaluation_set: EvaluationSet) -> dict[str, Any]:
    """`count`, and for each head output its accuracies."""
    if evaluation_set.label_sets is None:
        return {"count": len(predicted.label)} | predictions.accuracies(predicted)
    accuracies, count = predictions.real_accuracies(predicted, evaluation_set.label_sets)
    return {"count": count} | accuracies


def agreement_table(weights: str, predicted: Predictions, evaluation_set: EvaluationSet) -> str:
    """Who differs from whom, as text; without the label where images have several."""
    choices = {head: best[:, 0] for head, best in predicted.choices.items()}
    if evaluation_set.label_sets is None:
        choices["label"] = predicted.label
    return agreement.table(
        agreement.differences(choices),
        title=f"{evaluation_set.name}, {weights}: differ, % of images",
    )
