"""The predictions of a classifier for every image, and their accuracies and confusions.

`evaluate` sums over a batch, which is what training needs; per-class accuracy, confusions
and sets of correct labels need the predictions themselves.
"""

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import models, storage
from deit_jax.errors import ConfigError
from deit_jax.evaluation.evaluate import fetched
from deit_jax.evaluation.heads import head_outputs, main_head
from deit_jax.evaluation.rows import Rows, confusion

PyTree = Any

TOP = 5


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for N images, in the order of the records.

    Attributes:
      index: int [N], record numbers.
      label: int [N].
      choices: for each of `heads.head_outputs` int [N, 5], the most likely classes, best
        first, fewer of them with fewer classes; -1 where a score was not a number.
      loss: for each head float [N], cross-entropy with the label.
      share: for each head float [N], probability of the most likely class.
    """

    index: np.ndarray
    label: np.ndarray
    choices: dict[str, np.ndarray]
    loss: dict[str, np.ndarray]
    share: dict[str, np.ndarray]

    def rows(self) -> Rows:
        """The predictions of the main head."""
        head = main_head(self.choices)
        shares = np.exp(-self.loss[head]), self.share[head]
        return Rows(self.index, self.label, self.choices[head][:, 0], *shares)


def make_prediction_step(
    *, model: Any, transform: Callable[[PyTree], jax.Array]
) -> Callable[[PyTree, PyTree], dict[str, Any]]:
    """Builds `step(variables, batch) -> predictions` of an evaluation batch, for `jax.jit`."""

    def step(variables: PyTree, batch: PyTree) -> dict[str, Any]:
        label = batch["label"]
        scores = head_outputs(models.apply(model, variables, transform(batch)))
        choices, loss, share = {}, {}, {}
        for head, score in scores.items():
            # Ties go to the lower class; a NaN would win in top_k and is not a prediction.
            highest, best = jax.lax.top_k(score, min(TOP, score.shape[1]))
            sound = jnp.isfinite(score).all(axis=1)
            choices[head] = jnp.where(sound[:, None], best, -1)
            loss[head] = -jnp.take_along_axis(score, label[:, None], axis=1)[:, 0]
            share[head] = jnp.exp(highest[:, 0])
        rows = {key: batch[key] for key in ("index", "label", "mask")}
        return rows | {"choices": choices, "loss": loss, "share": share}

    return step


def predict(
    step: Callable[[PyTree, PyTree], dict[str, Any]], variables: PyTree, batches: Iterable[PyTree]
) -> Predictions:
    """Runs every batch once; padding and images that could not be decoded are left out.

    Raises:
      ConfigError: there was no image that can be decoded.
    """
    parts = []
    for rows in fetched(step(variables, batch) for batch in batches):
        mask = rows.pop("mask")
        parts.append(jax.tree.map(lambda array, mask=mask: array[mask], rows))
    if not sum(len(part["index"]) for part in parts):
        raise ConfigError("the evaluation split has no image that can be decoded")
    return Predictions(**jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts))


def accuracies(predictions: Predictions) -> dict[str, dict[str, float]]:
    """For each head `top1`, `top5` (shares of the images) and `loss` (mean)."""
    results = {}
    for head, choices in predictions.choices.items():
        correct = choices == predictions.label[:, None]
        results[head] = {
            "top1": float(correct[:, 0].mean()),
            "top5": float(correct.any(axis=1).mean()),
            "loss": float(predictions.loss[head].mean()),
        }
    return results


def real_accuracies(
    predictions: Predictions, label_sets: Sequence[np.ndarray]
) -> tuple[dict[str, dict[str, float]], int]:
    """(for each head `top1`, images that count) against sets of correct classes.

    `label_sets[i]` holds the correct classes of record i. A prediction is correct when it is
    one of them; images without any are left out (arXiv 2006.07159).
    """
    sets = [set(label_sets[index].tolist()) for index in predictions.index]
    labeled = np.array([bool(labels) for labels in sets])
    if not labeled.any():
        raise ConfigError("no image of the set has a label")
    results = {}
    for head, choices in predictions.choices.items():
        pairs = zip(choices[:, 0].tolist(), sets, strict=True)
        correct = np.array([choice in labels for choice, labels in pairs])
        results[head] = {"top1": float(correct[labeled].mean())}
    return results, int(labeled.sum())


def per_class(
    predictions: Predictions, num_classes: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(images of each class int64 [K], top-1 [K] for each head, NaN for classes without images)."""
    images = np.bincount(predictions.label, minlength=num_classes)
    top1 = {}
    for head, choices in predictions.choices.items():
        correct = choices[:, 0] == predictions.label
        hits = np.bincount(predictions.label[correct], minlength=num_classes)
        top1[head] = np.where(images > 0, hits / np.maximum(images, 1), np.nan)
    return images, top1


def write_confusion(path: storage.Path, predictions: Predictions, names: Sequence[str]) -> None:
    """A CSV file for the main head: a row for each true class, a column for each predicted one."""
    counts = confusion(predictions.rows(), len(names))
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    _write_csv(path, [["true \\ predicted", *names], *rows])


def write_per_class(path: storage.Path, predictions: Predictions, names: Sequence[str]) -> None:
    """A CSV file: a row for each class with its images and the top-1 of each head."""
    images, top1 = per_class(predictions, len(names))
    rows: list[list] = [["class", "name", "images", *(f"{head} top1" for head in top1)]]
    for number, name in enumerate(names):
        shares = [values[number] for values in top1.values()]
        cells = ["" if np.isnan(share) else f"{share:.6f}" for share in shares]
        rows.append([number, name, int(images[number]), *cells])
    _write_csv(path, rows)


def _write_csv(path: storage.Path, rows: list[list]) -> None:
    with storage.replacing(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
