"""Predictions of single images, and the figures of them."""

import jax.numpy as jnp
import numpy as np

from deit_jax import data
from deit_jax.data.arrays import ArraySource
from deit_jax.evaluation import rows as rows_lib

SHARES = np.array(
    [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.05, 0.9, 0.05], [np.nan, 0.5, 0.5]]
)
LABELS = np.array([0, 0, 1, 2, 1])


def gathered():
    """In two batches, the second with padding."""
    parts = []
    for start in (0, 3):
        rows = np.arange(start, start + 3)
        mask = rows < 5
        rows = np.where(mask, rows, 0)
        batch = {"index": 100 + rows, "label": jnp.asarray(LABELS[rows]), "mask": mask}
        found = rows_lib.of_batch(jnp.log(jnp.asarray(SHARES[rows])), batch)
        parts.append({name: np.asarray(values) for name, values in found.items()})
    return rows_lib.gathered(parts)


def test_rows_leave_out_padding_and_know_probabilities():
    rows = gathered()
    assert rows.index.tolist() == [100, 101, 102, 103, 104]
    assert rows.choice.tolist() == [0, 1, 2, 1, -1]
    np.testing.assert_allclose(rows.label_share[:4], [0.7, 0.1, 0.3, 0.05], rtol=1e-5)
    np.testing.assert_allclose(rows.choice_share[:4], [0.7, 0.8, 0.4, 0.9], rtol=1e-5)
    assert rows_lib.confusion(rows, 3).tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_the_most_wrong_come_first():
    rows = gathered()
    assert rows_lib.most_wrong(rows).tolist() == [3, 1, 2]
    assert rows_lib.most_wrong(rows, 1).tolist() == [3]
    equal = rows._replace(label_share=np.zeros(5), choice_share=np.array([0.9, 0.2, 0.5, 0.2, 1]))
    assert rows_lib.most_wrong(equal).tolist() == [2, 1, 3]


def test_the_worst_pictures_are_those_of_their_records():
    images = np.stack([np.full((6, 6, 3), level, np.uint8) for level in range(0, 250, 50)])
    source = ArraySource(images, LABELS, "mine")
    rows = gathered()
    rows = rows._replace(index=rows.index - 100)
    figure = rows_lib.worst_figure(rows, source, ["a", "b", "c"], "val")
    assert [axes.images[0].get_array()[0, 0, 0] for axes in figure.axes] == [150, 50, 100]
    said = [text.get_text() for text in figure.texts]
    for text in ("mine[3]", "c", "→ b", " 5.0 %", " 90 %", "val: most wrong of 5 images"):
        assert text in said
    none = rows_lib.Rows(*(np.zeros(0, int) for _ in rows))
    assert not rows_lib.worst_figure(none, source, ["a", "b", "c"], "val").axes


def test_names_are_plain_english():
    opened = data.Data(None, None, 2, ("n01440764", "Größe"), "")
    assert rows_lib.class_names(opened) == ["tench", "Größe"]
    assert rows_lib.class_names(data.Data(None, None, 2, None, "")) == ["class 0", "class 1"]
