"""Paths that a user names: `pathlib.Path` on this machine, `StorePath` elsewhere."""

import datetime
import functools
import io
import os
import pathlib
import posixpath
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, Self

from deit_jax.errors import ConfigError
from deit_jax.storage import stores

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
# What pathlib makes of a URL: one slash is lost.
_COLLAPSED = re.compile(r"(gs|gcs|s3|s3a|az|abfs|hf|https?):/[^/]")


class Stat(NamedTuple):
    """What `os.stat_result` has of it: bytes, and seconds since 1970 (0 where unknown)."""

    st_size: int
    st_mtime: float


@functools.total_ordering
class StorePath:
    """A file or folder at a URL, with the methods of `pathlib.Path` that are used here.

    A store has objects and no folders: one exists while something is in it.

    Args:
      url: `scheme://bucket/name`.

    Raises:
      ConfigError: the scheme is not supported, or there is no bucket.
    """

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        bucket, _, rest = match["rest"].partition("/") if match else ("", "", "")
        if not match or not bucket:
            raise ConfigError(f"{url!r} is not a URL such as gs://bucket/folder")
        scheme = match["scheme"].lower()
        # TensorStore and orbax know the first name alone.
        self._scheme = "gs" if scheme == "gcs" else scheme
        # Empty parts and dots are parts of names in a store, and never what is meant.
        parts = [part for part in rest.split("/") if part not in ("", ".")]
        self._parts = (bucket, *parts)
        self._fs = stores.filesystem(self._scheme)

    def __str__(self) -> str:
        return f"{self._scheme}://{'/'.join(self._parts)}"

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __lt__(self, other: "StorePath") -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> Self:
        return type(self)(f"{self}/{name}")

    @property
    def scheme(self) -> str:
        """What is before `://`, in lower case."""
        return self._scheme

    @property
    def filesystem(self) -> Any:
        """fsspec's filesystem, which takes `str` of this path."""
        return self._fs

    @property
    def name(self) -> str:
        return self._parts[-1]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> Self:
        return type(self)(f"{self._scheme}://{'/'.join(self._parts[:-1] or self._parts)}")

    def with_name(self, name: str) -> Self:
        return self.parent / name

    def with_stem(self, stem: str) -> Self:
        return self.with_name(stem + self.suffix)

    def with_suffix(self, suffix: str) -> Self:
        return self.with_name(self.stem + suffix)

    def absolute(self) -> Self:
        return self

    def expanduser(self) -> Self:
        return self

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a store has no folders."""

    def _info(self) -> dict[str, Any] | None:
        try:
            with stores.as_os_error(str(self)):
                return self._fs.info(str(self))
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        return self._info() is not None

    def is_file(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def stat(self) -> Stat:
        with stores.as_os_error(str(self)):
            info = self._fs.info(str(self))
        times = [info[key] for key in ("mtime", "LastModified", "created") if key in info]
        changed = [time.timestamp() for time in times if isinstance(time, datetime.datetime)]
        return Stat(info["size"], changed[0] if changed else 0.0)

    def iterdir(self) -> Iterator[Self]:
        with stores.as_os_error(str(self)):
            found = self._fs.ls(str(self), detail=False)
        names = {name.rstrip("/").rpartition("/")[2] for name in found}
        # An empty object that a console made to stand for the folder is listed as itself.
        own = {self.name} if any(self._is_self(name) for name in found) else set()
        return iter([self / name for name in sorted(names - own)])

    def _is_self(self, name: str) -> bool:
        stripped = self._fs._strip_protocol(str(self))
        return name.rstrip("/") == str(stripped).rstrip("/")

    def read_bytes(self) -> bytes:
        with stores.as_os_error(str(self)):
            return self._fs.cat_file(str(self))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """In one operation: an object is never there in part."""
        with stores.as_os_error(str(self)):
            self._fs.pipe_file(str(self), content)

    def write_text(self, content: str, encoding: str = "utf-8") -> None:
        self.write_bytes(content.encode(encoding))

    def open(self, mode: str = "r") -> IO[Any]:
        """A file object for reading, `rb` or `r`; `storage.replacing` is for writing.

        `rb` can seek and fetches what is read.
        """
        if mode not in ("r", "rb"):
            raise ValueError(f"mode {mode!r}; to write, use storage.replacing")
        with stores.as_os_error(str(self)):
            file = self._fs.open(str(self), "rb")
        return file if mode == "rb" else io.TextIOWrapper(file, encoding="utf-8")

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            with stores.as_os_error(str(self)):
                self._fs.rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise


Path = pathlib.Path | StorePath


def path(value: str | os.PathLike | StorePath) -> Path:
    """What a user named as a path: on this machine, or at a URL.

    `file://` is this machine. A URL that went through `pathlib` is refused.

    Raises:
      ConfigError: a URL of an unsupported scheme, or of one whose package is missing.
    """
    if isinstance(value, StorePath):
        return value
    text = os.fspath(value)
    if text.startswith("file://"):
        return pathlib.Path(text.removeprefix("file://"))
    if _URL.fullmatch(text):
        return StorePath(text)
    if _COLLAPSED.match(text):
        raise ConfigError(f"{text!r} lacks a slash; a URL is written {text.replace(':/', '://')}")
    return pathlib.Path(text)


def is_remote(value: str | os.PathLike | StorePath) -> bool:
    """Whether `path(value)` is not on this machine."""
    return isinstance(path(value), StorePath)


def local_path(value: str | os.PathLike | StorePath, what: str) -> pathlib.Path:
    """`path(value)`, for what can only be on this machine.

    Raises:
      ConfigError: it is a URL; the message names `what`.
    """
    found = path(value)
    if isinstance(found, StorePath):
        raise ConfigError(f"{what} must be on this machine, not {found}; copy or mount it")
    return found
