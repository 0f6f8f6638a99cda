"""The stores behind URLs: fsspec's filesystems, asked again while they do not answer."""

import asyncio
import contextlib
import errno
import functools
import importlib
import inspect
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from deit_jax.errors import ConfigError

_LOG = logging.getLogger(__name__)

# How long a store that does not answer (503, 429, a broken connection) is asked again.
PATIENCE_S = 900.0
_LONGEST_PAUSE_S = 15.0
# Of one request, in seconds; a transfer may take as long as it needs while bytes arrive.
_CONNECT_S, _SILENCE_S = 10.0, 60.0
# Metadata of checkpoints go through etils, which prefers TensorFlow's client of buckets. That
# one keeps neither our patience nor emulators, and this library runs without TensorFlow. etils
# reads the variable at its first path and never again.
os.environ.setdefault("EPATH_USE_TF", "false")

_SUPPORTED = (
    "local paths, gs:// (pip install 'deit_jax[gcs]'), and with their fsspec drivers s3:// (s3fs), "
    "az:// (adlfs), hf:// (huggingface_hub), https:// (aiohttp)"
)


@functools.cache
def filesystem(scheme: str) -> Any:
    """fsspec's filesystem for `scheme`.

    Raises:
      ConfigError: fsspec knows no such scheme, or the package that reaches it is missing.
    """
    if scheme == "gs":
        return _google()
    refused = ConfigError(f"{scheme}:// is not supported; supported: {_SUPPORTED}")
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
        if _needs_arguments(kind):
            # ftp and others, whose URLs say more than a bucket and a name.
            raise refused
        return kind(use_listings_cache=False)
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// needs its fsspec driver ({error}); supported: {_SUPPORTED}"
        ) from None
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001 - a driver that cannot do without more raises anything
        raise refused from None


def _needs_arguments(kind: type) -> bool:
    # Not of the class, whose metaclass takes anything.
    _, *named = inspect.signature(kind.__init__).parameters.values()
    of_a_call = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is p.empty and p.kind not in of_a_call for p in named)


def _google() -> Any:
    """gcsfs with our patience, registered so that etils and orbax get the same."""
    try:
        import fsspec

        core = importlib.import_module("gcsfs.core")
    except ImportError as error:
        raise ConfigError(f"gs:// needs gcsfs ({error}): pip install 'deit_jax[gcs]'") from None
    _use_one_emulator()
    # Refused requests are raised to us; gcsfs would print a traceback of each as well, and
    # google.auth each place where it looked for an account.
    for name in ("gcsfs", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    kind = _patient(core)
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, kind, clobber=True)
    with as_os_error("gs://"):
        return fsspec.filesystem("gcs")


def _use_one_emulator() -> None:
    """Tells TensorStore, which transfers arrays, of the server that the rest is to use."""
    server = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if server and server != "default":
        url = server if "://" in server else f"http://{server}"
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", url)


def _patient(core: Any) -> type:
    """A subclass of gcsfs's filesystem that waits for a store that does not answer.

    Listings are not kept: other processes write in the same folders. gcsfs's own wrapper gives
    up after half a minute, so its undecorated method is called. Buckets with folders of their
    own (hierarchical namespaces) serve this interface too.
    """
    aiohttp = importlib.import_module("aiohttp")
    request = core.GCSFileSystem._request
    once = getattr(request, "__wrapped__", request)

    class PatientFileSystem(core.GCSFileSystem):
        def __init__(self, *args: Any, **options: Any) -> None:
            options.setdefault("use_listings_cache", False)
            super().__init__(*args, **options)
            self.requests_timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S
            )

        async def _request(self, *args: Any, **options: Any) -> Any:
            waiting = Waiting("Cloud Storage")
            while True:
                try:
                    return await once(self, *args, **options)
                except Exception as error:
                    if (pause := waiting.pause(error)) is None:
                        raise
                    await asyncio.sleep(pause)

    return PatientFileSystem


class Waiting:
    """How long to wait before a request is repeated, and one line when it begins to take long."""

    def __init__(self, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._clock = what, clock
        self._begun = clock()
        self._tries = 0

    def pause(self, error: Exception) -> float | None:
        """Seconds until the next try; None where repeating is of no use, or has been for long."""
        if not is_transient(error) or self._clock() - self._begun > PATIENCE_S:
            return None
        self._tries += 1
        if self._tries == 3:
            message = "%s does not answer (%s); asking again for up to %d minutes"
            _LOG.warning(message, self._what, reason_of(error), PATIENCE_S / 60)
        # Half of it at random, so that processes do not ask in step.
        longest = min(0.25 * 2**self._tries, _LONGEST_PAUSE_S)
        return longest * (0.5 + random.random() / 2)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    code = status_of(error)
    if code is not None:
        return code in (408, 429) or 500 <= code < 600
    if isinstance(error, TimeoutError | ConnectionError | asyncio.TimeoutError):
        return True
    # Those of aiohttp, requests and google.auth, which need not be installed.
    names = {kind.__name__ for kind in type(error).__mro__}
    transient = {"ClientConnectionError", "ClientPayloadError", "ChecksumError"}
    transient |= {"RequestException", "TransportError", "ProxyError"}
    return bool(names & transient)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of gcsfs, aiohttp or requests; None where it has none."""
    for value in (getattr(error, "code", None), getattr(error, "status", None)):
        if isinstance(value, int | str) and str(value).isdecimal():
            return int(value)
    return None


def reason_of(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextlib.contextmanager
def as_os_error(url: str) -> Iterator[None]:
    """What a driver raises, of whatever class, as the OSError that local files would give."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise _os_error(error, url) from error


def _os_error(error: Exception, url: str) -> OSError:
    text, code = reason_of(error), status_of(error)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object or bucket", url)
    if isinstance(error, FileExistsError):
        return FileExistsError(errno.EEXIST, "exists", url)
    # gcsfs raises a plain OSError for 403.
    if isinstance(error, PermissionError) or code in (401, 403) or "Forbidden" in text:
        lines = str(error).strip().splitlines()
        why = lines[-1][:300] if lines else text
        return PermissionError(errno.EACCES, f"permission denied ({why})", url)
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return type(error)(error.errno, text, url)
    # An answer that never came says nothing of what is there.
    kind = errno.ETIMEDOUT if is_transient(error) else errno.EIO
    return OSError(kind, text, url)


def is_refusal(error: BaseException) -> bool:
    """Whether the store did not answer, or did not let us: no news of what it has."""
    if is_transient(error) or status_of(error) in (401, 403):
        return True
    return isinstance(error, OSError) and "Forbidden" in str(error)
