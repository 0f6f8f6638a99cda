"""Every photo of a folder or .zip as one source, in whatever folders they are."""

from typing import NamedTuple

import numpy as np

from deit_jax import storage
from deit_jax.data import formats, splits
from deit_jax.data._tensorflow import require_tensorflow
from deit_jax.data.folder import FolderSource
from deit_jax.data.photo_files import open_photo_files
from deit_jax.errors import ConfigError


class AllPhotos(NamedTuple):
    """Photos with their names.

    Attributes:
      source: the photos, labels -1 for those in no class folder.
      names: of the files, relative to the folder.
      class_names: K folders, sorted; () without class folders.
      ignored: what was left out, as text; "" for nothing.
    """

    source: FolderSource
    names: list[str]
    class_names: tuple[str, ...]
    ignored: str


def open_all_photos(path: str) -> AllPhotos:
    """All photos, in the order of their names; splits are not distinguished.

    The class of a photo is the first folder of its name that is not a split (train, val, ...)
    or a single folder around all.

    Raises:
      ConfigError: a path that is missing or cannot be read, or no photo in it.
    """
    require_tensorflow()
    if not storage.path(path).expanduser().exists():
        raise ConfigError(f"no folder or .zip {path}")
    files = open_photo_files(path)
    tree = splits.plant(files.root, files.names, files.folders)
    ignored = formats.ignored(tree.ignored)
    if not tree.images:
        raise ConfigError(
            f"{path} has no photos; image files end in {', '.join(formats.EXTENSIONS)}"
            + (f"; {ignored}" if ignored else "")
        )
    classes = [_class_of(name) for name in tree.images]
    class_names = sorted(set(classes) - {""})
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = np.array([numbers.get(name, -1) for name in classes], np.int64)
    names = [tree.prefix + name for name in tree.images]
    source = FolderSource(files, splits.Split("all", names, labels), exif_orientation=True)
    return AllPhotos(source, names, tuple(class_names), ignored)


def _class_of(name: str) -> str:
    *folders, _ = name.split("/")
    if len(folders) > 1 and splits.is_split(folders[0]):
        folders = folders[1:]
    return folders[0] if folders and not splits.is_split(folders[0]) else ""
