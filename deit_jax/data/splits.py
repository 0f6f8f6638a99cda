"""Which photos of a folder train and which validate: by their split's folder, or by their names."""

import dataclasses
import hashlib
import os
import posixpath
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from deit_jax.data import formats
from deit_jax.errors import ConfigError, close_matches, unknown

EVAL_NAMES = ("val", "validation", "valid", "test")
# Folders of such names that hold folders are splits, whatever their case.
_SPLIT_NAMES = {"train", "training", "testing", "eval", *EVAL_NAMES}


@dataclasses.dataclass(frozen=True)
class Split:
    """Names of files, sorted by class, and int64 labels of the same length."""

    name: str
    files: list[str]
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tree:
    """The images below a folder.

    Attributes:
        where: the folder, for messages.
        prefix: of all names; what is before it is left out everywhere below.
        images: names of the images in it, without the prefix.
        folders: names of the folders in it, without the prefix.
        ignored: extensions of the other files.
    """

    where: str
    prefix: str
    images: list[str]
    folders: list[str]
    ignored: list[str]

    def top(self) -> list[str]:
        return sorted(name for name in self.folders if "/" not in name)

    def below(self, folder: str) -> "Tree":
        """The images in a folder of this one."""
        start = folder + "/"
        inside = lambda names: [n.removeprefix(start) for n in names if n.startswith(start)]
        return Tree(
            os.path.join(self.where, folder),
            self.prefix + start,
            inside(self.images),
            inside(self.folders),
            self.ignored,
        )

    def has_images_itself(self) -> bool:
        return any("/" not in name for name in self.images)

    def is_of_splits(self) -> bool:
        """Whether it has a folder `train` that holds folders."""
        return "train" in self.top() and not self.below("train").has_images_itself()


def plant(where: str, names: Sequence[str], folders: Sequence[str]) -> Tree:
    """The tree of all files; a single folder around classes or splits is passed over."""
    images = [name for name in names if formats.is_image(posixpath.basename(name))]
    kept = set(images)
    ignored = [posixpath.splitext(name)[1] for name in names if name not in kept]
    tree = Tree(where, "", images, list(folders), ignored)
    while len(top := tree.top()) == 1 and not tree.has_images_itself():
        inner = tree.below(top[0])
        if top[0].lower() in _SPLIT_NAMES or inner.has_images_itself() or not inner.images:
            break
        tree = inner
    return tree


def is_split(folder: str) -> bool:
    """Whether a folder of this name is a split and not a class."""
    return folder.lower() in _SPLIT_NAMES


def by_folder(tree: Tree, train_split: str, eval_split: str) -> tuple[Split, Split, list[str]]:
    """Splits in folders of their own: (train, eval, names of the classes, those of train).

    Raises:
        ConfigError: a split or class that is missing or has no images.
    """
    for name in (train_split, eval_split):
        if name not in tree.top():
            message = unknown(f"split folder of {tree.where}", name, tree.top())
            if tree.top() == [train_split]:
                inside = os.path.join(tree.where, train_split)
                raise ConfigError(f"{message}; to split its photos, give path={inside}")
            raise message
    train, evaluation = tree.below(train_split), tree.below(eval_split)
    names = _class_names(train)
    extra = sorted(set(_class_names(evaluation)) - set(names))
    if extra:
        raise ConfigError(
            f"{evaluation.where} has {len(extra)} class folder(s) that {train_split} lacks: "
            f"{', '.join(extra[:5])}; {train_split} has: {close_matches(extra[0], names)}"
        )
    return (
        _labeled(train, train_split, names, every_class=True),
        _labeled(evaluation, eval_split, names, every_class=False),
        names,
    )


def by_name(tree: Tree, val_share: float, seed: int) -> tuple[Split, Split, list[str]]:
    """Splits of `<class>/*` by the photos' names, as `by_folder`; the second may be empty.

    Raises:
        ConfigError: a class has no images, or folders are named like splits.
    """
    names = _class_names(tree)
    wrong = [n for n in names if n.lower() in _SPLIT_NAMES and tree.below(n).folders]
    if wrong:
        raise ConfigError(
            f"{tree.where} has folders named like splits: {', '.join(wrong)}; say which they are "
            f"with train_split and eval_split, such as train_split={wrong[0]}"
        )
    whole = _labeled(tree, "train", names, every_class=True)
    validating = np.zeros(len(whole.files), bool)
    for k in range(len(names)):
        members = np.flatnonzero(whole.labels == k)
        inside = [whole.files[i].removeprefix(tree.prefix) for i in members]
        validating[members] = validates(inside, val_share, seed)
    return _part(whole, "train", ~validating), _part(whole, "validation", validating), names


def validates(names: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which photos of a class, by their names, are for validation, bool [n].

    Each name is drawn for itself, so adding photos changes the side of none. Only where all of
    two or more would be on one side is one moved to the other; a single one trains.
    """
    draws = np.array([_draw(name, seed) for name in names])
    validating = draws < share
    if len(names) == 1:
        validating[:] = False
    elif validating.all():
        validating[draws.argmax()] = False
    elif not validating.any():
        validating[draws.argmin()] = True
    return validating


def _draw(name: str, seed: int) -> float:
    """Uniform in [0, 1), a function of both alone."""
    # macOS takes letters and their accents apart.
    text = unicodedata.normalize("NFC", name)
    content = f"{seed}/{text}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(content, digest_size=6).digest(), "big") / 2**48


def _part(split: Split, name: str, members: np.ndarray) -> Split:
    files = [split.files[i] for i in np.flatnonzero(members)]
    return Split(name, files, split.labels[members])


def _class_names(tree: Tree) -> list[str]:
    names = tree.top()
    if not names:
        raise ConfigError(
            f"{tree.where} has no class folders; images belong in {tree.where}/<class>/"
        )
    return names


def _labeled(tree: Tree, name: str, names: list[str], *, every_class: bool) -> Split:
    members: dict[str, list[str]] = {class_name: [] for class_name in names}
    for image in tree.images:
        class_name, _, rest = image.partition("/")
        if rest:
            members[class_name].append(tree.prefix + image)
    empty = [class_name for class_name, files in members.items() if not files]
    if empty and (every_class or len(empty) == len(names)):
        lost = formats.ignored(tree.ignored)
        raise ConfigError(
            f"{len(empty)} class folder(s) of {tree.where} have no images: {', '.join(empty[:5])}; "
            f"image files end in {', '.join(formats.EXTENSIONS)}" + (f"; {lost}" if lost else "")
        )
    labels = np.repeat(np.arange(len(names)), [len(members[n]) for n in names])
    return Split(name, [file for n in names for file in members[n]], labels)


def outside(tree: Tree, used: Iterable[Split]) -> int:
    """Images of the tree that are in none of these splits."""
    return len(tree.images) - sum(len(split.files) for split in used)
