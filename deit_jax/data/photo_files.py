"""Where photos of one's own are: the files of a folder, or of a .zip of it, by relative name."""

import contextlib
import os
import stat
import weakref
import zipfile
import zlib
from collections.abc import Iterator
from typing import Protocol

from deit_jax import storage
from deit_jax.data.formats import is_image
from deit_jax.data.source import CorruptImage, Record
from deit_jax.errors import ConfigError

# A photo is never so large, and what an archive says of a file's size may be made up.
_MOST_BYTES = 1 << 30


class PhotoFiles(Protocol):
    """Files by their names relative to `root`, with slashes; what systems hide is left out.

    Attributes:
        root: of the folder or archive.
        names: files; of each folder first its files, then its folders, both sorted.
        folders: every folder, also those without files.
    """

    root: str
    names: list[str]
    folders: list[str]

    def read(self, name: str) -> Record:
        """The content of a file, or the `CorruptImage` that says why it cannot be read."""
        ...


def open_photo_files(path: str) -> PhotoFiles:
    """The files of a folder or .zip; raises ConfigError where it cannot be read."""
    found = storage.path(path).expanduser()
    if found.is_file():
        return ZipFiles(found)
    return StoreFiles(found) if storage.is_remote(found) else FolderFiles(str(found))


def read_file(path: str | os.PathLike | storage.Path) -> Record:
    """The content of an image file, or the `CorruptImage` that says why it cannot be read.

    Nothing but a regular file is opened: reading from a pipe could wait for ever.
    """
    try:
        file = storage.path(path)
        if not isinstance(file, storage.StorePath) and not stat.S_ISREG(file.stat().st_mode):
            return CorruptImage("not a regular file")
        return file.read_bytes()
    except OSError as error:
        return CorruptImage(error.strerror or str(error))


class FolderFiles:
    """Files of a folder on this machine; see `PhotoFiles`."""

    def __init__(self, root: str):
        self.root = root
        self.names, self.folders = [], []
        try:
            for name, is_folder in _walk(root, "", ()):
                (self.folders if is_folder else self.names).append(name)
        except OSError as error:
            where = error.filename or root
            raise ConfigError(f"folder {where} cannot be read: {error.strerror}") from error

    def read(self, name: str) -> Record:
        return read_file(os.path.join(self.root, name))


class StoreFiles:
    """Files of a folder in a store, found by one listing; see `PhotoFiles`."""

    def __init__(self, root: storage.Path):
        self.root = str(root)
        try:
            found = storage.names_under(root)
        except OSError as error:
            raise ConfigError(f"folder {root} cannot be read: {error.strerror}") from error
        hidden = lambda name: any(part.startswith(".") for part in name.split("/"))
        self.names = [name for name in found if not hidden(name)]
        parts = [name.split("/") for name in self.names]
        inside = {"/".join(folders[:i]) for folders in parts for i in range(1, len(folders))}
        self.folders = sorted(inside)

    def read(self, name: str) -> Record:
        return read_file(f"{self.root}/{name}")


def _walk(folder: str, prefix: str, above: tuple) -> Iterator[tuple[str, bool]]:
    """(relative name, whether it is a folder) of everything below, links followed."""
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        # A link to a folder that this one is in.
        return
    folders = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name[0] == ".":
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            else:
                yield prefix + entry.name, False
    for name in folders:
        yield prefix + name, True
        yield from _walk(os.path.join(folder, name), f"{prefix}{name}/", (*above, here))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link in a circle: one bad photo, or a class that cannot be read.
        if is_image(entry.name):
            return False
        raise


class ZipFiles:
    """Files of a .zip archive, whose CRC-32 are checked; see `PhotoFiles`.

    An archive in a store is copied to this machine first.
    """

    def __init__(self, path: storage.Path):
        self.root = str(path)
        copied = contextlib.ExitStack()
        weakref.finalize(self, copied.close)
        try:
            self._zip = zipfile.ZipFile(copied.enter_context(storage.local_copy(path)))
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise ConfigError(f"{path} is neither a folder nor a readable .zip: {error}") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        for entry in self._zip.infolist():
            name = _entry_name(entry)
            parts = name.strip("/").split("/")
            if any(part[:1] in ("", ".") or part == "__MACOSX" for part in parts):
                continue
            if entry.flag_bits & 1:
                raise ConfigError(f"{path} is encrypted; unpack it, and give the folder")
            folders |= {"/".join(parts[:i]) for i in range(1, len(parts))}
            if name.endswith("/"):
                folders.add("/".join(parts))
            else:
                self._entries[name] = entry
        self.names = sorted(self._entries, key=_as_walked)
        self.folders = sorted(folders)

    def read(self, name: str) -> Record:
        entry = self._entries[name]
        if entry.file_size > _MOST_BYTES:
            return CorruptImage(f"{entry.file_size:,} bytes")
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            return CorruptImage(f"damaged: {error}")


def _entry_name(entry: zipfile.ZipInfo) -> str:
    name = entry.filename
    if not entry.flag_bits & 0x800:
        # Python takes it for IBM's code page; macOS writes UTF-8 without saying so.
        try:
            name = name.encode("cp437").decode()
        except UnicodeError:
            pass
    return name.replace("\\", "/")


def _as_walked(name: str) -> list[tuple[bool, str]]:
    """Sorts names as `_walk` yields them."""
    *folders, file = name.split("/")
    return [*((True, folder) for folder in folders), (False, file)]
