"""What a classifier is evaluated on: its own data, ImageNet V2, ImageNet ReaL."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from deit_jax import data
from deit_jax.errors import ConfigError, unknown

IMAGENET_CLASSES = 1000
# Name -> the tfds set, its only split, and the feature with one label an image.
IMAGENET_SETS = {
    "v2": ("imagenet_v2/matched-frequency", "test", "label"),
    "real": ("imagenet2012_real", "validation", "original_label"),
}
REAL_LABELS = "real_label"
NAMES = ("val", *IMAGENET_SETS)


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Images with their labels.

    Attributes:
      name: `val`, `v2` or `real`.
      data: the opened set; its `eval` source is what is evaluated.
      label_sets: of `real`, the right classes of every record, int64 [k] each, k from 0;
        None for sets with one label an image.
    """

    name: str
    data: data.Data
    label_sets: list[np.ndarray] | None


def open_set(name: str, options: Mapping[str, Any], *, num_classes: int) -> EvaluationSet:
    """Opens an evaluation set.

    Args:
      name: `val`, the evaluation split that `options` describe; `v2`, matched frequency
        (arXiv 1902.10811); `real`, ImageNet's validation images with reassessed labels
        (arXiv 2006.07159).
      options: arguments of `data.open_data`; of the last two only `data_dir` is looked at.
      num_classes: of the classifier.

    Raises:
      ConfigError: no such set, not prepared, or of other classes than the classifier's.
    """
    if name not in NAMES:
        raise unknown("evaluation set", name, NAMES)
    if name in IMAGENET_SETS:
        opened = _open_imagenet_set(name, options, num_classes)
    else:
        opened = data.open_data(**_without_train(options))
    if opened.num_classes != num_classes:
        raise ConfigError(
            f"{opened.description}: {opened.num_classes} classes, the checkpoint knows "
            f"{num_classes}; evaluate on the data that it was trained for: --config.data.name or "
            "--config.data.path"
        )
    label_sets = None
    if name == "real":
        label_sets = [opened.eval.integers(i, REAL_LABELS) for i in range(len(opened.eval))]
    return EvaluationSet(name, opened, label_sets)


def _open_imagenet_set(name: str, options: Mapping[str, Any], num_classes: int) -> data.Data:
    if num_classes != IMAGENET_CLASSES:
        raise ConfigError(
            f"evaluation set {name!r} has the {IMAGENET_CLASSES} classes of ImageNet, the "
            f"checkpoint knows {num_classes}"
        )
    tfds_name, split, label = IMAGENET_SETS[name]
    return data.open_data(
        source="tfds",
        name=tfds_name,
        data_dir=options.get("data_dir"),
        train_split=split,
        eval_split=split,
        label_key=label,
    )


def _without_train(options: Mapping[str, Any]) -> dict[str, Any]:
    """The same set opened without its training files, where the evaluation split is named."""
    options = dict(options)
    if options.get("source", "tfds") == "tfds" and options.get("eval_split"):
        options["train_split"] = options["eval_split"]
    return options
