"""Evaluation that counts every image once: all head outputs, and who agrees with whom.

Batches are padded and masked, sums (never per-batch means) are added up, so the
result does not depend on batch size or device count.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import models
from deit_jax.errors import ConfigError
from deit_jax.evaluation import agreement
from deit_jax.evaluation.heads import head_outputs

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How evaluation is done.

    Attributes:
      batch_size: rows of the global batch.
      image_size: side in pixels at which the model sees the image.
      crop_ratio: the short side is resized to image_size / crop_ratio before the crop.
      canvas: side of the canvases in pixels.
      agreement: also evaluate the teacher, and report who agrees with whom (paper, Table 4).
    """

    batch_size: int
    image_size: int
    crop_ratio: float
    canvas: int
    agreement: bool


def make_evaluation(
    image_size: int,
    *,
    batch_size: int = 256,
    crop_ratio: float = 0.875,
    canvas: int = 512,
    agreement: bool = True,
) -> Evaluation:
    """Resize, center crop, and the accuracy of every head output over all images.

    Args:
      image_size: side in pixels of the student's images.
      batch_size, crop_ratio, canvas, agreement: see `Evaluation`. The crop ratio is .875 for
        DeiT (1.0 for DeiT-III); timm's default of .9 gives slightly other accuracies for the
        same weights. The canvas is enlarged where the crop needs it.

    Raises:
      ConfigError: a value out of its range.
    """
    if not 0 < crop_ratio <= 1:
        raise ConfigError(f"crop_ratio must be above 0 and at most 1, not {crop_ratio}")
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
    canvas = max(canvas, math.ceil(image_size / crop_ratio))
    return Evaluation(batch_size, image_size, crop_ratio, canvas, agreement)


def make_eval_step(
    *,
    model: Any,
    transform: Callable[[PyTree], jax.Array],
    teacher_fn: Callable[[PyTree, jax.Array], jax.Array] | None = None,
) -> Callable[[PyTree, PyTree, PyTree], dict[str, jax.Array]]:
    """Builds `step(variables, teacher_variables, batch) -> sums`, ready for `jax.jit`.

    The batch holds `canvas, size, label, mask`; rows with a False mask weigh nothing.
    Sums are f32 scalars: `count`, for each head output `HEAD/top1`, `HEAD/top5`, `HEAD/loss`,
    and `differ/A/B`, the images on which the first choices of A and B differ (paper, Table 4),
    for each pair of head outputs, label and teacher.
    """

    def step(variables: PyTree, teacher_variables: PyTree, batch: PyTree):
        image = transform(batch)
        weight = batch["mask"].astype(jnp.float32)
        label = batch["label"]
        scores = head_outputs(models.apply(model, variables, image))
        if teacher_fn is not None:
            logits = teacher_fn(teacher_variables, image).astype(jnp.float32)
            scores["teacher"] = jax.nn.log_softmax(logits)
        sums = {"count": weight.sum()}
        for name, score in scores.items():
            correct = jnp.take_along_axis(score, label[:, None], axis=1)
            # Ties go to the lower class number, as in argmax and top_k. A NaN score
            # compares false everywhere and would otherwise count as correct.
            earlier = jnp.arange(score.shape[1])[None, :] < label[:, None]
            ahead = jnp.sum((score > correct) | ((score == correct) & earlier), axis=1)
            sound = jnp.isfinite(correct[:, 0])
            sums[f"{name}/top1"] = jnp.sum(weight * (sound & (ahead < 1)))
            sums[f"{name}/top5"] = jnp.sum(weight * (sound & (ahead < 5)))
            sums[f"{name}/loss"] = -jnp.sum(jnp.where(batch["mask"], correct[:, 0], 0.0))
        choice = {name: jnp.argmax(score, axis=-1) for name, score in scores.items()}
        choice["label"] = label
        for a, b in itertools.combinations(choice, 2):
            sums[agreement.key(a, b)] = jnp.sum(weight * (choice[a] != choice[b]))
        return sums

    return step


def fetched(results: Iterable[PyTree]) -> Iterator[PyTree]:
    """Results on the host, each fetched once two more are in flight."""
    pending: collections.deque = collections.deque()
    for result in results:
        pending.append(result)
        if len(pending) > 2:
            yield jax.device_get(pending.popleft())
    yield from map(jax.device_get, pending)


def evaluate(
    eval_step: Callable[[PyTree, PyTree, PyTree], Mapping[str, jax.Array]],
    candidates: Mapping[str, PyTree],
    teacher_variables: PyTree,
    batches: Iterable[PyTree],
) -> dict[str, dict[str, float]]:
    """Runs every batch once through each candidate's variables (raw, EMA).

    `batches` are on the device already; at most two of them are in flight at a time.
    Returns, for each candidate, `count` and the mean of every sum over the images.

    Raises:
      ConfigError: there was no image.
    """
    totals: dict[str, dict[str, float]] = {name: {} for name in candidates}

    def run(batch: PyTree) -> dict[str, Mapping[str, jax.Array]]:
        return {
            name: eval_step(variables, teacher_variables, batch)
            for name, variables in candidates.items()
        }

    for results in fetched(map(run, batches)):
        for name, sums in results.items():
            for key, value in sums.items():
                totals[name][key] = totals[name].get(key, 0.0) + float(value)
    return {name: _means(total) for name, total in totals.items()}


def _means(total: Mapping[str, float]) -> dict[str, float]:
    count = total.get("count", 0.0)
    if not count:
        raise ConfigError("the evaluation split has no image")
    means = {key: value / count for key, value in total.items() if key != "count"}
    return {"count": int(count)} | means


def summary(results: Mapping[str, float]) -> str:
    """One line: top-1 of every head output in percent, and on how many images."""
    heads = [key.removesuffix("/top1") for key in results if key.endswith("/top1")]
    shares = "  ".join(f"{head} {100 * results[f'{head}/top1']:.2f} %" for head in heads)
    return f"top-1  {shares}  ({results['count']:,} images)"
