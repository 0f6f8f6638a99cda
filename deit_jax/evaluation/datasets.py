"""What a classifier is evaluated on: its own data, ImageNet V2, ImageNet ReaL."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deit_jax import builders, data
from deit_jax.errors import ConfigError

IMAGENET_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Images with their labels.

    Attributes:
      name: of `SETS`.
      data: the opened set; its `eval` source is what is evaluated.
      label_sets: the correct classes of every record, int64 [k] each, k from 0; None for sets
        with one label per image.
    """

    name: str
    data: data.Data
    label_sets: list[np.ndarray] | None


def open_val(options: Mapping[str, Any], num_classes: int) -> data.Data:
    """The evaluation split of the data."""
    options = dict(options)
    if options.get("source", "tfds") == "tfds" and options.get("eval_split"):
        # The training files need not be there.
        options["train_split"] = options["eval_split"]
    return data.open_data(**options)


def open_imagenet(
    name: str, split: str, label: str, options: Mapping[str, Any], num_classes: int
) -> data.Data:
    """ImageNet with other images or labels; of the options only `data_dir` counts."""
    if num_classes != IMAGENET_CLASSES:
        raise ConfigError(
            f"{name} has the {IMAGENET_CLASSES} classes of ImageNet, but the checkpoint was "
            f"trained on {num_classes}"
        )
    return data.open_data(
        source="tfds",
        name=name,
        data_dir=options.get("data_dir"),
        train_split=split,
        eval_split=split,
        label_key=label,
    )


SETS = {
    "val": open_val,
    # Matched frequency, arXiv 1902.10811.
    "v2": functools.partial(open_imagenet, "imagenet_v2/matched-frequency", "test", "label"),
    # ImageNet's validation images with reassessed labels, arXiv 2006.07159.
    "real": functools.partial(open_imagenet, "imagenet2012_real", "validation", "original_label"),
}
# The feature with all correct labels of an image, of sets that have one.
LABEL_SETS = {"real": "real_label"}


def open_set(
    name: str,
    options: Mapping[str, Any],
    *,
    num_classes: int,
    class_names: Sequence[str] | None = None,
) -> EvaluationSet:
    """Opens the set `name` of `SETS`, with `options` of `data.open_data`.

    Args:
      num_classes: of the classifier.
      class_names: of the classifier, where those of the data must be the same.

    Raises:
      ConfigError: no such set, not prepared, or of other classes than the classifier's.
    """
    opened = builders.choose(SETS, name, "evaluation set")(options, num_classes)
    _check_classes(opened, num_classes, class_names)
    label_sets = None
    if name in LABEL_SETS:
        records = range(len(opened.eval))
        label_sets = [opened.eval.integers(i, LABEL_SETS[name]) for i in records]
    return EvaluationSet(name, opened, label_sets)


def _check_classes(opened: data.Data, num_classes: int, class_names: Sequence[str] | None) -> None:
    if opened.num_classes != num_classes:
        raise ConfigError(
            f"the checkpoint was trained on {num_classes} classes, but {opened.description} has "
            f"{opened.num_classes}; evaluate on the data that it was trained for: "
            "--config.data.name or --config.data.path"
        )
    names = opened.class_names
    if class_names and names and tuple(class_names) != tuple(names):
        pairs = enumerate(zip(class_names, names, strict=True))
        first, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise ConfigError(
            f"class {first} is {theirs!r} in {opened.description}, but {ours!r} in the checkpoint; "
            "the classes of both must be the same, in the same order"
        )
