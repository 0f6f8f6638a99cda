"""What is computed from the predictions of every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import models
from deit_jax.errors import ConfigError
from deit_jax.evaluation import datasets, predictions


def predictions_for(logits, labels, dist=None):
    """`Predictions` for given logits [N, K], two batches of them with padding."""
    outputs = models.Output(jnp.asarray(logits), None if dist is None else jnp.asarray(dist))
    rows = len(labels)

    class Stub:
        pass

    def apply(model, variables, image):
        return jax.tree.map(lambda x: x[image], outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "apply", apply)
        step = predictions.make_prediction_step(model=Stub(), transform=lambda b: b["canvas"])
        batches = []
        for start in range(0, rows, 4):
            rows_here = np.arange(start, start + 4)
            mask = rows_here < rows
            rows_here = np.where(mask, rows_here, 0)
            batches.append(
                {
                    "canvas": jnp.asarray(rows_here),
                    "label": jnp.asarray(labels)[rows_here],
                    "index": jnp.asarray(np.where(mask, rows_here, -1)),
                    "mask": jnp.asarray(mask),
                }
            )
        return predictions.predict(step, {}, batches)


LOGITS = np.array(
    [[9, 1, 0], [0, 9, 1], [0, 1, 9], [9, 0, 1], [0, 9, 1], [np.nan, 9, 9]], np.float32
)
LABELS = np.array([0, 1, 2, 1, 1, 0])


def test_real_counts_any_correct_label_and_leaves_out_images_without(capsys):
    predicted = predictions_for(LOGITS, LABELS)
    sets = [np.array(x, int) for x in ([0, 2], [0, 2], [], [0], [1], [0, 1, 2])]
    scores, count = predictions.real_accuracies(predicted, sets)
    # Correct: 0, 3, 4. Wrong: 1, and 5, whose score is not a number. Not counted: 2.
    assert count == 5 and scores == {"class": {"top1": 0.6}}
    with pytest.raises(ConfigError, match="no image"):
        predictions.real_accuracies(predicted, [np.array([], int)] * 6)


def test_real_follows_the_record_number():
    predicted = predictions_for(LOGITS, LABELS)
    order = np.array([5, 4, 3, 2, 1, 0])
    moved = predictions.Predictions(
        predicted.index[order],
        predicted.label[order],
        {k: v[order] for k, v in predicted.choices.items()},
        {k: v[order] for k, v in predicted.loss.items()},
        {k: v[order] for k, v in predicted.share.items()},
    )
    sets = [np.array([label]) for label in LABELS]
    assert predictions.real_accuracies(moved, sets) == predictions.real_accuracies(predicted, sets)


def test_confusion_and_classes():
    predicted = predictions_for(LOGITS, LABELS)
    counts = predictions.confusion(predicted.rows(), 4)
    # Row: the label; the score that is not a number is nowhere.
    assert counts.tolist() == [[1, 0, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    images, top1 = predictions.per_class(predicted, 4)
    assert images.tolist() == [2, 3, 1, 0]
    np.testing.assert_allclose(top1["class"], [1 / 2, 2 / 3, 1, np.nan])


def test_no_image_is_an_error():
    with pytest.raises(ConfigError, match="split has no image"):
        predictions.predict(lambda variables, batch: {}, {}, [])


def test_imagenet_sets_are_for_its_classes(tfds_dir):
    with pytest.raises(
        ConfigError, match="1000 classes of ImageNet, but the checkpoint was trained on 10"
    ):
        datasets.open_set("v2", {"data_dir": str(tfds_dir)}, num_classes=10)
