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

from deit_jax import augment, builders, data, models
from deit_jax.errors import ConfigError, check_at_most
from deit_jax.evaluation import agreement
from deit_jax.evaluation import rows as rows_lib
from deit_jax.evaluation.heads import head_outputs, main_head

PyTree = Any
Statistics = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Resize, center crop, and the accuracy of every head output over all images.

    Attributes:
      image_size: side in pixels at which the model sees the image.
      batch_size: rows of the global batch.
      crop_ratio: the short side is resized to image_size / crop_ratio before the crop. .875 for
        DeiT, 1.0 for DeiT-III; timm's default of .9 gives slightly other accuracies for the
        same weights.
      canvas: side of the canvases in pixels, at least image_size, and enlarged where the crop
        needs it; None is 512, or image_size if that is more.
      agreement: also evaluate the teacher, and report who agrees with whom (paper, Table 4).

    Raises:
      ConfigError: a value out of its range.
    """

    image_size: int
    _: dataclasses.KW_ONLY
    batch_size: int = 256
    crop_ratio: float = 0.875
    canvas: int | None = None
    agreement: bool = True

    def __post_init__(self) -> None:
        if not 0.1 <= self.crop_ratio <= 1:
            raise ConfigError(f"crop_ratio must be from 0.1 to 1, not {self.crop_ratio}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")
        canvas = max(self.image_size, 512) if self.canvas is None else self.canvas
        if canvas < self.image_size:
            raise ConfigError(
                f"canvas must be at least the model's {self.image_size} pixels, not {canvas}"
            )
        check_at_most(data.MOST_CANVAS, canvas=canvas)
        needed = math.ceil(self.image_size / self.crop_ratio)
        object.__setattr__(self, "canvas", max(canvas, needed))

    def make_transform(self, mean: Statistics, std: Statistics) -> Callable:
        """See `augment.make_eval_transform`."""
        sizes = {"image_size": self.image_size, "crop_ratio": self.crop_ratio}
        return augment.make_eval_transform(**sizes, mean=mean, std=std)

    def batches(
        self, source: data.Source, reading: Mapping[str, Any], *, rows: Any = None
    ) -> data.BatchIterator:
        """See `data.eval_batches`, which takes its other options from an `input` section."""
        return builders.bind(data.eval_batches, reading)(
            source, self.batch_size, self.canvas, self.image_size, self.crop_ratio, rows
        )


def make_eval_step(
    *,
    model: Any,
    transform: Callable[[PyTree], jax.Array],
    teacher_fn: Callable[[PyTree, jax.Array], jax.Array] | None = None,
) -> Callable[[PyTree, PyTree, PyTree], tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Builds `step(variables, teacher_variables, batch) -> (sums, rows)`, ready for `jax.jit`.

    The batch holds `canvas, size, label, index, mask`; rows with a False mask weigh nothing.
    Sums are f32 scalars: `count`, for each head output `HEAD/top1`, `HEAD/top5`, `HEAD/loss`,
    and `differ/A/B`, the images on which the first choices of A and B differ (paper, Table 4),
    for each pair of head outputs, label and teacher. `rows` is `rows.of_batch` of the
    main head.
    """

    def step(variables: PyTree, teacher_variables: PyTree, batch: PyTree):
        image = transform(batch)
        weight = batch["mask"].astype(jnp.float32)
        label = batch["label"]
        scores = head_outputs(models.apply(model, variables, image))
        if teacher_fn is not None:
            with jax.named_scope("teacher"):
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
        main = scores[main_head(scores)]
        return sums, rows_lib.of_batch(main, batch)

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
    eval_step: Callable[[PyTree, PyTree, PyTree], tuple[Mapping[str, jax.Array], PyTree]],
    candidates: Mapping[str, PyTree],
    teacher_variables: PyTree,
    batches: Iterable[PyTree],
    rows: dict[str, rows_lib.Rows] | None = None,
) -> dict[str, dict[str, float]]:
    """Runs every batch once through each candidate's variables (raw, EMA).

    `batches` are on the device already; at most two of them are in flight at a time.
    Returns, for each candidate, `count` and the mean of every sum over the images; `rows`, if
    given, is filled with the `Rows` of each.

    Raises:
      ConfigError: there was no image that can be decoded.
    """
    totals = {name: collections.defaultdict(float) for name in candidates}

    parts: dict[str, list] = {name: [] for name in candidates}

    def run(batch: PyTree) -> dict[str, tuple[Mapping[str, jax.Array], PyTree]]:
        return {
            name: eval_step(variables, teacher_variables, batch)
            for name, variables in candidates.items()
        }

    for results in fetched(map(run, batches)):
        for name, (sums, batch_rows) in results.items():
            for key, value in sums.items():
                totals[name][key] += float(value)
            if rows is not None:
                parts[name].append(batch_rows)
    means = {name: _means(total) for name, total in totals.items()}
    if rows is not None:
        rows |= {name: rows_lib.gathered(of_batches) for name, of_batches in parts.items()}
    return means


def _means(total: Mapping[str, float]) -> dict[str, float]:
    if not total["count"]:
        raise ConfigError("the evaluation split has no image that can be decoded")
    means = {key: value / total["count"] for key, value in total.items() if key != "count"}
    return {"count": int(total["count"])} | means


def summary(results: Mapping[str, float]) -> str:
    """One line: top-1 of every head output in percent, and on how many images."""
    heads = [key.removesuffix("/top1") for key in results if key.endswith("/top1")]
    shares = "  ".join(f"{head} {100 * results[f'{head}/top1']:.2f} %" for head in heads)
    return f"top-1  {shares}  ({results['count']:,} images)"
