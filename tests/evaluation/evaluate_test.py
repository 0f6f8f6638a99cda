"""Evaluation: every image once, all head outputs, disagreement."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import models
from deit_jax.errors import ConfigError
from deit_jax.evaluation import evaluate, heads
from deit_jax.models import Output

CLASSES = 7


class Stub:
    """Stands for a model: the image holds the logits of both heads."""


def scores_as_model(monkeypatch, two_heads=True):
    def apply(model, variables, image):
        return Output(image[:, 0], image[:, 1] if two_heads else None)

    monkeypatch.setattr(models, "apply", apply)


def batches(logits, labels, size):
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        pad = size - len(labels[rows])
        yield {
            "canvas": jnp.asarray(np.pad(logits[rows], ((0, pad), (0, 0), (0, 0)))),
            "label": jnp.asarray(np.pad(labels[rows], (0, pad))),
            "index": jnp.asarray(np.pad(np.arange(len(labels))[rows], (0, pad))),
            "mask": jnp.asarray(np.arange(size) < size - pad),
        }


def run(logits, labels, size, teacher_fn=None):
    step = jax.jit(
        evaluate.make_eval_step(
            model=Stub(), transform=lambda batch: batch["canvas"], teacher_fn=teacher_fn
        )
    )
    return evaluate.evaluate(step, {"raw": {}}, {}, batches(logits, labels, size))["raw"]


@pytest.fixture
def example():
    r = np.random.RandomState(0)
    return r.randn(53, 2, CLASSES).astype(np.float32) * 3, r.randint(0, CLASSES, 53)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_padding_and_batch_size_do_not_matter(monkeypatch, example):
    scores_as_model(monkeypatch)
    whole, parts = run(*example, 53), run(*example, 8)
    assert whole["count"] == parts["count"] == 53
    for key, value in whole.items():
        assert parts[key] == pytest.approx(value, rel=1e-6), key


def test_heads_equal_a_plain_loop(monkeypatch, example):
    scores_as_model(monkeypatch)
    logits, labels = example
    results = run(logits, labels, 16)
    outputs = {
        "class": softmax(logits[:, 0]),
        "dist": softmax(logits[:, 1]),
        "mean": softmax(logits.mean(1)),
        "softmax_sum": (softmax(logits[:, 0]) + softmax(logits[:, 1])) / 2,
    }
    for head, p in outputs.items():
        order = np.argsort(-p, axis=-1, kind="stable")
        assert results[f"{head}/top1"] == pytest.approx(np.mean(order[:, 0] == labels))
        top5 = np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)])
        assert results[f"{head}/top5"] == pytest.approx(top5)
        loss = -np.log(p[np.arange(53), labels]).mean()
        assert results[f"{head}/loss"] == pytest.approx(loss, rel=1e-5)
    choices = {head: p.argmax(-1) for head, p in outputs.items()} | {"label": labels}
    for pair in ("class/dist", "class/label", "mean/softmax_sum"):
        a, b = pair.split("/")
        assert results[f"differ/{pair}"] == pytest.approx(np.mean(choices[a] != choices[b]))


def test_mean_of_logits_and_sum_of_softmaxes_can_differ():
    logits = jnp.asarray([[[0.0, 6.0, 5.0], [9.0, 0.0, 5.0]]])
    scores = heads.head_outputs(Output(logits[:, 0], logits[:, 1]))
    assert tuple(scores) == heads.head_names(distilled=True)
    assert int(scores["mean"].argmax()) == 2
    assert int(scores["softmax_sum"].argmax()) == 0


def test_teacher_is_a_reader_too(monkeypatch, example):
    scores_as_model(monkeypatch)
    results = run(*example, 16, teacher_fn=lambda variables, image: image[:, 1])
    assert results["differ/dist/teacher"] == 0
    assert results["teacher/top1"] == results["dist/top1"]


def test_one_head_has_one_reading(monkeypatch, example):
    scores_as_model(monkeypatch, two_heads=False)
    results = run(*example, 16)
    assert not any(key.startswith(("dist/", "mean/", "softmax_sum/")) for key in results)
    assert evaluate.summary(results).startswith("top-1  class ")


def test_scores_that_are_not_numbers_are_never_right(monkeypatch, example):
    scores_as_model(monkeypatch)
    logits, labels = example
    results = run(np.full_like(logits, np.nan), labels, 16)
    assert results["class/top1"] == results["mean/top5"] == 0


def test_ties_go_to_the_lower_class(monkeypatch):
    scores_as_model(monkeypatch, two_heads=False)
    results = run(np.zeros((4, 2, CLASSES), np.float32), np.array([0, 1, 4, 5]), 4)
    assert results["class/top1"] == 0.25
    assert results["class/top5"] == 0.75


def test_no_image_is_an_error(monkeypatch):
    scores_as_model(monkeypatch)
    with pytest.raises(ConfigError, match="has no image"):
        run(np.zeros((0, 2, CLASSES), np.float32), np.zeros(0, int), 4)
