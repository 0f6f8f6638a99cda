"""Photos of one's own on this machine, from wherever a notebook's reader has them."""

import functools
import os
import pathlib
import re
import shutil
import tarfile
import urllib.request
import zipfile
from typing import Any

import numpy as np

from deit_jax.errors import ConfigError

_DRIVE = pathlib.Path("/content/drive")
_ENLARGED = 4


def obtain_photos(origin: str | os.PathLike, folder: str | os.PathLike) -> pathlib.Path:
    """Photos, as the `path` of source 'folder' takes them: a folder or a .zip, on this machine.

    What was obtained before is not obtained again.

    Args:
      origin: `sample` (see `write_digits`), `upload` (asks for a file; in Colab), the address
        (`https://...`) of a .zip or .tar of photos, or a path. What is on Google Drive is copied
        first, since a drive answers too slowly to be read once an epoch.
      folder: where to keep what is not on this machine yet.

    Raises:
      ConfigError: nothing there, or not photos.
    """
    origin, folder = str(origin), pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if origin == "sample":
        return write_digits(folder)
    if origin == "upload":
        return _upload(folder)
    if re.match(r"https?://", origin):
        return _download(origin, folder)
    path = pathlib.Path(origin).expanduser()
    if path.is_relative_to(_DRIVE):
        return _from_drive(path, folder)
    if not path.exists():
        raise ConfigError(
            f"no folder or .zip {path}; origins: sample, upload, https://..., a path, and "
            f"{_DRIVE}/MyDrive/... in Colab"
        )
    return path


def write_digits(folder: str | os.PathLike) -> pathlib.Path:
    """A sample set that needs no download: handwritten digits, as photos of ten classes.

    The 1,797 real scans of scikit-learn's data set, of 8 x 8 pixels, here enlarged to 32: all but
    ten in `folder/digits/<class>`, one of each class in `folder/new`. Two files are put beside
    them that cannot be read, as there are among photos from a phone: one is cut, one is HEIC.

    Raises:
      ConfigError: scikit-learn is missing.
    """
    photos, new = pathlib.Path(folder, "digits"), pathlib.Path(folder, "new")
    if (new / "9.png").exists():
        return photos
    try:
        from sklearn import datasets
    except ImportError as error:
        message = f"the sample set needs scikit-learn ({error}): pip install scikit-learn"
        raise ConfigError(message) from error
    from matplotlib import image
    from scipy import ndimage

    digits: Any = datasets.load_digits()
    enlarge = functools.partial(ndimage.zoom, zoom=_ENLARGED, mode="nearest", grid_mode=True)
    for digit in range(10):
        of_class = np.flatnonzero(digits.target == digit)
        files = [photos / str(digit) / f"{index:04d}.png" for index in of_class[:-1]]
        for file, index in zip([*files, new / f"{digit}.png"], of_class, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            shares: Any = enlarge(digits.images[index] / digits.images.max())
            levels = np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8)
            image.imsave(file, np.stack([levels] * 3, axis=-1))
    whole = (new / "0.png").read_bytes()
    (photos / "0" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "1" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    return photos


def _colab() -> None:
    """Raises ConfigError outside of Colab."""
    try:
        import google.colab  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError("upload and Google Drive are Colab's; give a path or https://") from None


def _upload(folder: pathlib.Path) -> pathlib.Path:
    _colab()
    from google.colab import files  # pyright: ignore[reportMissingImports]

    uploaded = files.upload()
    if not uploaded:
        raise ConfigError("nothing was uploaded; choose a .zip with one folder per class")
    name, content = next(iter(uploaded.items()))
    file = folder / pathlib.Path(name).name
    file.write_bytes(content)
    return _opened(file, name)


def _from_drive(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    _colab()
    if not (_DRIVE / "MyDrive").exists():
        from google.colab import drive  # pyright: ignore[reportMissingImports]

        drive.mount(str(_DRIVE))
    if not path.exists():
        raise ConfigError(f"no folder or file {path}; what is in your drive: {_DRIVE}/MyDrive/...")
    copy = folder / path.name
    if path.is_dir():
        shutil.copytree(path, copy, dirs_exist_ok=True)
        return copy
    shutil.copyfile(path, copy)
    return _opened(copy, str(path))


def _download(address: str, folder: pathlib.Path) -> pathlib.Path:
    name = re.sub(r"[^\w.-]", "_", address.split("?")[0].rstrip("/").rsplit("/", 1)[-1])
    file = folder / name
    if not file.exists():
        partial = file.with_name(f"{name}.partial")
        try:
            with urllib.request.urlopen(address, timeout=30) as source, open(partial, "wb") as to:
                shutil.copyfileobj(source, to)
        except (OSError, ValueError) as error:  # URLError is an OSError
            partial.unlink(missing_ok=True)
            raise ConfigError(f"cannot download {address}: {error}") from None
        partial.rename(file)
    return _opened(file, address)


def _opened(file: pathlib.Path, origin: str) -> pathlib.Path:
    """A .zip under a name that says so; the content of a .tar, in a folder beside it."""
    if zipfile.is_zipfile(file):
        return file if file.suffix.lower() == ".zip" else file.rename(f"{file}.zip")
    if not tarfile.is_tarfile(file):
        with open(file, "rb") as content:
            start = content.read(40)
        file.unlink()
        raise ConfigError(f"{origin} is neither a .zip nor a .tar of photos; it begins {start!r}")
    target = file.with_name(f"{file.name}.photos")
    if not target.exists():
        partial = file.with_name(f"{file.name}.partial")
        with tarfile.open(file) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(target)
    inside = list(target.iterdir())
    # Around everything there is often one folder.
    folders = [path for path in inside if path.is_dir()]
    return folders[0] if len(folders) == 1 and _holds_folders(folders[0]) else target


def _holds_folders(folder: pathlib.Path) -> bool:
    return any(path.is_dir() for path in folder.iterdir())
