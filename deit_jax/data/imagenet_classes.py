"""Readable names of the 1,000 classes of ImageNet-1k, by their WordNet numbers (synsets).

They are in imagenet_classes.txt, in label order. The names are the first lemma of each noun
synset of WordNet 3.0 (Copyright 2006 by Princeton University, all rights reserved; free to
use, copy, modify and distribute with this notice, provided "as is" without warranty); two
words that name two classes each are changed so that they differ.
"""

import functools
import importlib.resources


def class_name(label: str) -> str:
    """`n01440764` -> `tench`; what is not a synset of ImageNet-1k is returned unchanged."""
    return _names().get(label, label)


def class_names() -> tuple[str, ...]:
    """1,000 names in label order: sorted synsets, as in torchvision and TFDS."""
    return tuple(_names().values())


@functools.cache
def _names() -> dict[str, str]:
    text = importlib.resources.files("deit_jax.data") / "imagenet_classes.txt"
    return dict(line.split(" ", 1) for line in text.read_text(encoding="utf-8").splitlines())
