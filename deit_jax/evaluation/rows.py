"""What a classifier says of each image, with one head, and figures of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import data, figures
from deit_jax.data import imagenet_classes
from deit_jax.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Pictures on a sheet of the most wrong ones.
SHOWN = 12


class Rows(NamedTuple):
    """One prediction for each of N images.

    Attributes:
      index: int [N], record numbers.
      label: int [N].
      choice: int [N], the most likely class; -1 where a score was not a number.
      label_share, choice_share: float [N], probabilities of the label and of the choice.
    """

    index: np.ndarray
    label: np.ndarray
    choice: np.ndarray
    label_share: np.ndarray
    choice_share: np.ndarray


def of_batch(score: jax.Array, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The values of `Rows` and `mask` for log-probabilities [B, K] of an evaluation batch."""
    label = batch["label"]
    sound = jnp.isfinite(score).all(axis=1)
    of_label = jnp.take_along_axis(score, label[:, None], axis=1)[:, 0]
    return {
        "index": batch["index"],
        "label": label,
        "choice": jnp.where(sound, jnp.argmax(score, axis=1), -1),
        "label_share": jnp.exp(of_label),
        "choice_share": jnp.exp(score.max(axis=1)),
        "mask": batch["mask"],
    }


def gathered(parts: Iterable[Mapping[str, np.ndarray]]) -> Rows:
    """The rows of all batches, without padding and images that could not be decoded."""
    kept = [
        {name: values[part["mask"]] for name, values in part.items() if name != "mask"}
        for part in parts
    ]
    return Rows(**jax.tree.map(lambda *arrays: np.concatenate(arrays), *kept))


def confusion(rows: Rows, num_classes: int) -> np.ndarray:
    """int64 [K, K]: images of class i (row) predicted as class j (column)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    sound = rows.choice >= 0
    np.add.at(counts, (rows.label[sound], rows.choice[sound]), 1)
    return counts


def most_wrong(rows: Rows, count: int = SHOWN) -> np.ndarray:
    """Positions of the wrong images whose label is the least likely, these first.

    Among equals those come first whose wrong class is the most likely.
    """
    wrong = np.flatnonzero((rows.choice != rows.label) & (rows.choice >= 0))
    order = np.lexsort((rows.index[wrong], -rows.choice_share[wrong], rows.label_share[wrong]))
    return wrong[order[:count]]


def class_names(opened: data.Data) -> list[str]:
    """K names, synsets in plain English; numbers where the data has none."""
    names = opened.class_names or [f"class {k}" for k in range(opened.num_classes)]
    return [imagenet_classes.class_name(name) for name in names]


def confusion_figure(rows: Rows, names: Sequence[str], title: str) -> "Figure":
    """See `figures.confusion`; images without a prediction are left out."""
    return figures.confusion(confusion(rows, len(names)), names, title=title)


def worst_figure(rows: Rows, source: data.Source, names: Sequence[str], title: str) -> "Figure":
    """See `figures.worst`: whole pictures, with the names of their records.

    Raises:
      CorruptImage: one cannot be read any more.
    """
    chosen = most_wrong(rows)
    records = source.get(rows.index[chosen])[0] if len(chosen) else []
    names = style.drawable(names)
    return figures.worst(
        [data.decode_image(r, exif_orientation=source.exif_orientation) for r in records],
        [names[k] for k in rows.label[chosen]],
        [names[k] for k in rows.choice[chosen]],
        rows.label_share[chosen].tolist(),
        rows.choice_share[chosen].tolist(),
        notes=[source.record_name(int(k)).rpartition("/")[2] for k in rows.index[chosen]],
        title=f"{title}: most wrong of {len(rows.index):,} images",
    )
