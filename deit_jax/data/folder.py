"""Photos of one's own: `PHOTOS/<class>/*.jpg`, with or without splits, as a folder or a .zip."""

import os

import numpy as np

from deit_jax import storage
from deit_jax.data import formats, splits
from deit_jax.data._tensorflow import require_tensorflow
from deit_jax.data.photo_files import PhotoFiles, open_photo_files
from deit_jax.data.source import Data, Record, Source
from deit_jax.errors import ConfigError

LAYOUT = "<class>/*.jpg, or train/<class>/*.jpg and val/<class>/*.jpg"


class FolderSource(Source):
    """Files of one split, sorted by class, then by name."""

    def __init__(self, files: PhotoFiles, split: splits.Split, exif_orientation: bool):
        self._files = files
        self._names = split.files
        self.labels = split.labels
        self.exif_orientation = exif_orientation

    def __len__(self) -> int:
        return len(self._names)

    def get(self, indices: np.ndarray) -> tuple[list[Record], np.ndarray]:
        images = [self._files.read(self._names[index]) for index in indices]
        return images, self.labels[np.asarray(indices)]

    def record_name(self, index: int) -> str:
        return os.path.join(self._files.root, self._names[index])


def open_folder(
    *,
    path: str | None = None,
    train_split: str | None = None,
    eval_split: str | None = None,
    val_share: float = 0.2,
    split_seed: int = 0,
    exif_orientation: bool = True,
) -> Data:
    """Image files in folders, one folder per class: PHOTOS/<class>/*.jpg, or a .zip of it.

    With PHOTOS/train/<class> and PHOTOS/val/<class> these are the splits. The classes are the
    folders of the training split, sorted by name, as torchvision's ImageFolder numbers them.

    Args:
        path: the folder, or a .zip of it.
        train_split, eval_split: names of the split folders; None: train, and the first of
            val, validation, valid, test that exists.
        val_share: without split folders, the share of each class that is kept for
            validation, in expectation: a photo's side depends on its name and `split_seed`
            alone, so it stays when photos are added (`splits.validates`).
        split_seed: another one makes another such split.
        exif_orientation: photos are turned as their EXIF orientation says. torchvision and
            the published recipes do not.

    Raises:
        ConfigError: a missing path or split, a folder that cannot be read, a class without
            images, a class that only the evaluation split has.
    """
    require_tensorflow()
    if path is None:
        raise ConfigError(f"source 'folder' needs path, a folder (or a .zip of it) with {LAYOUT}")
    if not 0 < val_share < 1:
        raise ConfigError(f"val_share must be above 0 and below 1, not {val_share:g}")
    if not storage.path(path).expanduser().exists():
        raise ConfigError(f"no folder or .zip {path}; source 'folder' reads {LAYOUT} in it")
    files = open_photo_files(path)
    tree = splits.plant(files.root, files.names, files.folders)
    if not tree.folders and not tree.images:
        lost = formats.ignored(tree.ignored)
        raise ConfigError(
            f"{files.root} is empty; source 'folder' reads {LAYOUT} in it"
            + (f"; {lost}" if lost else "")
        )
    if train_split or eval_split or tree.is_of_splits():
        present = (name for name in splits.EVAL_NAMES if name in tree.top())
        split_names = (train_split or "train", eval_split or next(present, "val"))
        train, evaluation, names = splits.by_folder(tree, *split_names)
        how = ""
    else:
        train, evaluation, names = splits.by_name(tree, val_share, split_seed)
        how = f", split by name with val_share {val_share:g}"
    notes = _notes(tree, train, evaluation)
    if not evaluation.files:
        evaluation = train
    return Data(
        train=FolderSource(files, train, exif_orientation),
        eval=FolderSource(files, evaluation, exif_orientation),
        num_classes=len(names),
        class_names=tuple(names),
        description=f"{files.root}: {train.name} {len(train.files)}, {evaluation.name} "
        f"{len(evaluation.files)} images, {len(names)} classes{how}",
        notes=notes,
    )


def _notes(tree: splits.Tree, train: splits.Split, evaluation: splits.Split) -> tuple[str, ...]:
    notes = [formats.ignored(tree.ignored)]
    if unused := splits.outside(tree, (train, evaluation)):
        notes.append(f"{unused:,} images are in no class folder of these splits, and not used")
    if not evaluation.files:
        notes.append(
            "no class has two photos, so none is left for validation: evaluation is on the "
            "training photos, and says nothing of others"
        )
    return tuple(note for note in notes if note)
