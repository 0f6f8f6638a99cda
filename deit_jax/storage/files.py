"""Operations on files and folders, the same on this machine and in a store."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from deit_jax.storage import stores
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
def local_copy(path: Path) -> Iterator[pathlib.Path]:
    """A file or folder on this machine with the content and name of `path`, while in the body.

    `path` itself where it is on this machine.
    """
    if isinstance(path, pathlib.Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="deit_jax-") as folder:
        target = pathlib.Path(folder, path.name)
        for file in files_under(path) if path.is_dir() else [path]:
            inside = str(file).removeprefix(str(path)).lstrip("/")
            copy = target / inside if inside else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, open(copy, "wb") as to:
                with stores.as_os_error(str(file)):
                    shutil.copyfileobj(source, to, 1 << 24)
        yield target


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
    """Every file in a folder and in its folders, sorted; links to folders are followed.

    Raises:
      OSError: a folder cannot be read.
    """
    if isinstance(path, StorePath):
        with stores.as_os_error(str(path)):
            found = path.filesystem.find(str(path))
        root = str(path.filesystem._strip_protocol(str(path))).rstrip("/") + "/"
        inside = [name.removeprefix(root) for name in found if not name.endswith("/")]
        return [path / name for name in sorted(inside)]

    def refuse(error: OSError) -> None:
        raise error

    files: list[Path] = []
    for base, folders, names in os.walk(path, onerror=refuse, followlinks=False):
        folders.sort()
        files += [pathlib.Path(base, name) for name in sorted(names)]
    return files


def read_range(path: Path, start: int, length: int) -> bytes:
    """`length` bytes from `start`; fewer at the end of the file."""
    if isinstance(path, StorePath):
        with stores.as_os_error(str(path)):
            return path.filesystem.cat_file(str(path), start=start, end=start + length)
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), length, start)


def remove_tree(path: Path, *, first: str = "") -> None:
    """Removes a folder with all that is in it; nothing happens where there is none.

    Args:
      first: name of a file in it that goes before the others, where its absence says that the
        folder is no longer whole.
    """
    if isinstance(path, pathlib.Path):
        shutil.rmtree(path, ignore_errors=True)
        return
    if first:
        (path / first).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError), stores.as_os_error(str(path)):
        path.filesystem.rm(str(path), recursive=True)


def move_tree(source: Path, target: Path, *, last: str = "") -> Path:
    """Renames a folder; in a store its objects are copied, then removed.

    Args:
      last: name of a file in it that is copied after the others and removed before them, so
        that a folder that has it is whole.

    Returns the target.
    """
    if isinstance(source, pathlib.Path):
        assert isinstance(target, pathlib.Path), "not from one machine to another"
        return source.rename(target)
    files = files_under(source)
    for file in sorted(files, key=lambda file: (file.name == last, str(file))):
        to = f"{target}{str(file).removeprefix(str(source))}"
        with stores.as_os_error(str(file)):
            source.filesystem.cp_file(str(file), to)
    remove_tree(source, first=last)
    return target
