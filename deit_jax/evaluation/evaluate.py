"""Evaluation that counts every image once: four readings of the heads, and who agrees with whom.

Batches are padded and masked, sums (never per-batch means) are added up, so the
result does not depend on batch size or device count.
"""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import models

PyTree = Any

CLASS, DIST, MEAN, SOFTMAX = "class", "dist", "mean", "softmax_sum"


def head_scores(output: models.Output) -> dict[str, jax.Array]:
    """Log-probabilities [B, K] of each way to read the heads.

    `class` and `dist` are the two heads alone, `mean` the mean of their logits (what
    the official code evaluates), `softmax_sum` the sum of their softmaxes (what the
    paper's section 4 describes); the last two can differ in their first choice.
    A model without distillation head has `class` alone.
    """
    logits = output.logits.astype(jnp.float32)
    scores = {CLASS: jax.nn.log_softmax(logits)}
    if output.dist_logits is not None:
        dist = output.dist_logits.astype(jnp.float32)
        scores[DIST] = jax.nn.log_softmax(dist)
        scores[MEAN] = jax.nn.log_softmax((logits + dist) / 2)
        scores[SOFTMAX] = jnp.logaddexp(scores[CLASS], scores[DIST]) - jnp.log(2.0)
    return scores


def heads(*, distilled: bool) -> tuple[str, ...]:
    """Names of the readings of a model with or without distillation head."""
    return (CLASS, DIST, MEAN, SOFTMAX) if distilled else (CLASS,)


def make_eval_step(
    *,
    model: Any,
    transform: Callable[[PyTree], jax.Array],
    teacher_fn: Callable[[PyTree, jax.Array], jax.Array] | None = None,
) -> Callable[[PyTree, PyTree, PyTree], dict[str, jax.Array]]:
    """Builds `step(variables, teacher_variables, batch) -> sums`, ready for `jax.jit`.

    The batch holds `canvas, size, label, mask`; rows with a False mask weigh nothing.
    Sums are f32 scalars: `count`, for each head `HEAD/top1`, `HEAD/top5`, `HEAD/loss`,
    and for each pair of readers `differ/A/B`, the images on which their first choices
    differ (paper, Table 4); the label and the teacher are readers too.
    """

    def step(variables: PyTree, teacher_variables: PyTree, batch: PyTree):
        image = transform(batch)
        weight = batch["mask"].astype(jnp.float32)
        label = batch["label"]
        scores = head_scores(models.apply(model, variables, image))
        if teacher_fn is not None:
            logits = teacher_fn(teacher_variables, image).astype(jnp.float32)
            scores["teacher"] = jax.nn.log_softmax(logits)
        sums = {"count": weight.sum()}
        for name, score in scores.items():
            true = jnp.take_along_axis(score, label[:, None], axis=1)
            # Ties go to the lower class number, as in argmax and top_k. A NaN score
            # compares false everywhere and would otherwise count as right.
            earlier = jnp.arange(score.shape[1])[None, :] < label[:, None]
            ahead = jnp.sum((score > true) | ((score == true) & earlier), axis=1)
            right = jnp.isfinite(true[:, 0])
            sums[f"{name}/top1"] = jnp.sum(weight * (right & (ahead < 1)))
            sums[f"{name}/top5"] = jnp.sum(weight * (right & (ahead < 5)))
            sums[f"{name}/loss"] = -jnp.sum(jnp.where(batch["mask"], true[:, 0], 0.0))
        choice = {name: jnp.argmax(score, axis=-1) for name, score in scores.items()}
        choice["label"] = label
        names = list(choice)
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                sums[f"differ/{a}/{b}"] = jnp.sum(weight * (choice[a] != choice[b]))
        return sums

    return step


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
      ValueError: no image was seen.
    """
    totals: dict[str, dict[str, float]] = {name: {} for name in candidates}
    pending: collections.deque = collections.deque()

    def take(all_sums):
        for name, sums in jax.device_get(all_sums).items():
            for key, value in sums.items():
                totals[name][key] = totals[name].get(key, 0.0) + float(value)

    for batch in batches:
        pending.append(
            {
                name: eval_step(variables, teacher_variables, batch)
                for name, variables in candidates.items()
            }
        )
        if len(pending) > 2:
            take(pending.popleft())
    while pending:
        take(pending.popleft())
    return {name: _means(total) for name, total in totals.items()}


def _means(total: Mapping[str, float]) -> dict[str, float]:
    count = total.get("count", 0.0)
    if not count:
        raise ValueError("evaluation saw no image: the evaluation split is empty")
    means = {key: value / count for key, value in total.items() if key != "count"}
    return {"count": int(count)} | means


def summary(results: Mapping[str, float]) -> str:
    """One line: top-1 of every reading in percent, and on how many images."""
    heads = [key.removesuffix("/top1") for key in results if key.endswith("/top1")]
    shown = "  ".join(f"{head} {100 * results[f'{head}/top1']:.2f} %" for head in heads)
    return f"top-1  {shown}  ({results['count']:,} images)"
