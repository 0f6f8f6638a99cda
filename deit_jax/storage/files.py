"""Operations on files and folders, the same on this machine and in a store."""

import contextlib
import glob
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from deit_jax.errors import ConfigError
from deit_jax.storage import paths, stores
from deit_jax.storage.paths import Path, StorePath


def write(path: Path, content: bytes | str) -> None:
    """Writes a whole file: readers, and a kill at any moment, find the old one or the new one."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """A file object (`wb` or `w`, `options` of `open`) whose content becomes `path` at the end.

    In one operation, and only if the body does not raise. Missing folders are made.
    """
    folder = None
    if isinstance(path, pathlib.Path):
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
    # Beside its target, so that one rename puts it there.
    kept: Any = tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", delete=False)
    temporary = pathlib.Path(kept.name)
    kept.close()
    try:
        with open(temporary, mode, **options) as file:
            yield file
        _put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _put(file: pathlib.Path, path: Path) -> None:
    """Moves a file of ours to `path`."""
    if isinstance(path, pathlib.Path):
        # A temporary file is its owner's alone; others get what the umask lets them have.
        mask = os.umask(0)
        os.umask(mask)
        file.chmod(0o666 & ~mask)
        os.replace(file, path)
        return
    with stores.as_os_error(str(path)):
        path.filesystem.put_file(str(file), str(path))


@contextlib.contextmanager
def local_copy(path: Path, *, only: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """A file or folder on this machine with the content and name of `path`, while in the body.

    `path` itself where it is on this machine.

    Args:
      only: of a folder, these of its files, as far as they exist; none: everything in it.
    """
    if isinstance(path, pathlib.Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deit_jax-") as folder:
        target = pathlib.Path(folder, path.name)
        for file in _to_copy(path, only):
            inside = str(file).removeprefix(str(path)).lstrip("/")
            copy = target / inside if inside else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, open(copy, "wb") as to:
                with stores.as_os_error(str(file)):
                    shutil.copyfileobj(source, to, 1 << 24)
        yield target


def _to_copy(path: StorePath, only: Sequence[str]) -> Sequence[Path]:
    if only:
        return [path / name for name in only if (path / name).is_file()]
    return files_under(path) if path.is_dir() else [path]


@contextlib.contextmanager
def local_output(path: Path) -> Iterator[pathlib.Path]:
    """Where a library is to write the file or folder `path`; put there at the end.

    `path` itself where it is on this machine, with the folders above it made. Nothing is put
    into a store where the body raises.
    """
    if isinstance(path, pathlib.Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deit_jax-") as folder:
        target = pathlib.Path(folder, path.name)
        yield target
        for file in sorted(target.rglob("*")) if target.is_dir() else [target]:
            inside = file.relative_to(target).as_posix()
            if file.is_file():
                _put(file, path if inside == "." else path / inside)


def files_under(path: Path) -> list[Path]:
    """Every file in a folder and in its folders, in the order of `names_under`."""
    return [path / name for name in names_under(path)]


def names_under(path: Path) -> list[str]:
    """`a.jpg`, `folder/b.jpg` of every file in a folder and in its folders.

    In the order of names, the files of a folder before those of its folders. Links to folders
    are not followed.

    Raises:
      OSError: a folder cannot be read.
    """
    if isinstance(path, StorePath):
        with stores.as_os_error(str(path)):
            found = path.filesystem.find(str(path))
        root = str(path.filesystem._strip_protocol(str(path))).rstrip("/") + "/"
        return sorted([n.removeprefix(root) for n in found if not n.endswith("/")], key=_place)

    def refuse(error: OSError) -> None:
        raise error

    inside: list[str] = []
    for base, folders, names in os.walk(path, onerror=refuse):
        folders.sort()
        prefix = os.path.relpath(base, path).replace(os.sep, "/") + "/"
        prefix = "" if prefix == "./" else prefix
        inside += [prefix + name for name in sorted(names)]
    return inside


def _place(name: str) -> list[tuple[bool, str]]:
    *folders, last = name.split("/")
    return [*((True, folder) for folder in folders), (False, last)]


def folders_in(path: Path) -> list[str]:
    """Names of the folders in a folder, sorted.

    Raises:
      OSError: it cannot be read.
    """
    if isinstance(path, pathlib.Path):
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    with stores.as_os_error(str(path)):
        entries = path.filesystem.ls(str(path), detail=True)
    names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries]
    kinds = [entry["type"] for entry in entries]
    return sorted(n for n, kind in zip(names, kinds, strict=True) if kind == "directory")


def matching(pattern: str, folder: str = "") -> list[str]:
    """Paths that match a pattern of `*`, `**`, `?` and `[...]` (glob's), sorted.

    Args:
      folder: in which the pattern begins, unless it says so itself; taken literally.

    Raises:
      OSError: a store did not answer.
    """
    if not paths.is_remote(pattern):
        pattern = os.path.join(glob.escape(folder), os.path.expanduser(pattern))
    if not paths.is_remote(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    start = StorePath(pattern)
    with stores.as_os_error(pattern):
        return sorted(f"{start.scheme}://{name}" for name in start.filesystem.glob(str(start)))


def free_bytes(path: Path) -> int | None:
    """Free space where `path` is; None where that is unknown or unlimited."""
    if isinstance(path, StorePath):
        return None
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def read_range(path: Path, start: int, length: int) -> bytes:
    """`length` bytes from `start`; fewer at the end of the file."""
    if isinstance(path, StorePath):
        with stores.as_os_error(str(path)):
            return path.filesystem.cat_file(str(path), start=start, end=start + length)
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, start)


def writable(value: str | os.PathLike | StorePath, what: str) -> Path:
    """`path(value)`, in which a file was written and removed.

    Where there is no such folder on this machine yet, in the nearest one above it: what is refused
    afterwards leaves no empty folder behind.

    Raises:
      ConfigError: that failed, or no folder is named; the message names `what`, and a bucket
        that is missing or not ours is reported at the first answer.
    """
    if not str(value):
        raise ConfigError(f"{what} is empty; name a folder, or '.' for this one")
    folder = paths.path(value)
    try:
        place = folder
        while not isinstance(place, StorePath) and not place.exists():
            place = place.parent
        trial = place / f".writable-{socket.gethostname()}-{os.getpid()}"
        write(trial, b"")
        trial.unlink()
    except OSError as error:
        remedy = "choose a writable folder"
        if isinstance(folder, StorePath):
            remedy = "choose a bucket that exists and that this account may write"
            if folder.scheme == "gs" and isinstance(error, PermissionError):
                remedy += " (gcloud auth application-default login)"
        raise ConfigError(
            f"{what}={folder} cannot be written ({error.strerror}); {remedy}"
        ) from error
    return folder


def writable_file(value: str | os.PathLike | StorePath, what: str) -> Path:
    """`path(value)` of a file that is written later; its folder is tried as `writable` does."""
    file = paths.path(value)
    writable(file.parent, what)
    return file


def remove_tree(path: Path, *, first: Sequence[str] = ()) -> None:
    """Removes a folder with all that is in it; nothing happens where there is none.

    Args:
      first: names of files in it that go before the others, where their absence says that the
        folder is no longer whole.
    """
    if isinstance(path, pathlib.Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    for name in first:
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError), stores.as_os_error(str(path)):
        path.filesystem.rm(str(path), recursive=True)


def move_tree(source: Path, target: Path, *, last: Sequence[str] = ()) -> Path:
    """Renames a folder; in a store its objects are copied, then removed.

    Args:
      last: names of files in it that are copied after the others and removed before them, so
        that a folder that has them is whole.

    Returns the target.
    """
    if isinstance(source, pathlib.Path):
        assert isinstance(target, pathlib.Path), "not from one machine to another"
        return source.rename(target)
    files = files_under(source)
    for file in sorted(files, key=lambda file: (file.name in last, str(file))):
        to = f"{target}{str(file).removeprefix(str(source))}"
        with stores.as_os_error(str(file)):
            source.filesystem.cp_file(str(file), to)
    remove_tree(source, first=last)
    return target
