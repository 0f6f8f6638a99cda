"""Repositories of the Hugging Face hub by name, fetched once into the cache.

`hf-hub:OWNER/NAME`, with `@REVISION` for a branch, a tag or a commit, and `timm/NAME`. Plain
downloads of three files: the package huggingface_hub would bring a dozen others. As there,
`$HF_ENDPOINT` names another server, `$HF_TOKEN` (or the file that `hf auth login` writes) opens
gated and private repositories, and `$HF_HUB_OFFLINE` forbids to ask.
"""

import http.client
import os
import pathlib
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import NamedTuple

from deit_jax.errors import ConfigError, close_matches
from deit_jax.pretrained import hub

_PREFIX = re.compile(r"hf[-_]hub:")
_REPOSITORY = re.compile(
    r"(?:hf[-_]hub:)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII
)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_SETTINGS = ("config.json", "preprocessor_config.json")
_TIMEOUT_S = 30.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Repository(NamedTuple):
    """`owner/name`, and a branch, tag or commit of it."""

    name: str
    revision: str


def is_name(text: str) -> bool:
    """Whether this names a repository: `hf-hub:...`, or `timm/` and one more part."""
    return bool(_PREFIX.match(text) or text.startswith("timm/") and text.count("/") == 1)


def parse(text: str) -> Repository:
    """The repository that a name stands for. Raises ConfigError for a malformed name."""
    match = _REPOSITORY.fullmatch(text)
    if not match:
        raise ConfigError(f"{text[:100]!r} is not hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    return Repository(match["repository"], match["revision"] or "main")


def fetch(text: str) -> pathlib.Path:
    """A folder with the weights of a repository and the settings beside them.

    What is in the cache is used as it is, without asking for a newer one.

    Raises:
      ConfigError: one line for no such repository, none that may be read, no weights in it, no
        network, or a download that is cut or damaged.
    """
    repository = parse(text)
    plain = "@".join(repository).replace("/", "--")
    folder = hub.cache_folder() / "hub" / plain
    if folder.is_dir():
        return folder
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
        raise ConfigError(
            f"{text}: not in {folder.parent}, and $HF_HUB_OFFLINE forbids to fetch it"
        )
    partial = folder.with_name(f"{plain}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _fetch_files(text, repository, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # put there by a faster process
                raise
    except urllib.error.HTTPError as error:
        raise ConfigError(f"{text}: {_refusal(repository, error)}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"{text}: cannot download from {_endpoint()} ({reason or type(error).__name__}); "
            "download the repository on a machine with a network and give its folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _fetch_files(text: str, repository: Repository, folder: pathlib.Path) -> None:
    for name in _SETTINGS:
        repository = _download(text, repository, name, folder) or repository
    for name in _WEIGHTS:
        if _download(text, repository, name, folder):
            return
    missing = " nor ".join(_WEIGHTS)
    raise ConfigError(
        f"{text}: no such repository, or it has neither {missing}{_alike(repository)}"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps what the hub says of a file before it points to where the file is."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ANN001, ANN201
        """See the base class."""
        self.headers |= _lower(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _lower(headers: http.client.HTTPMessage) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _download(
    text: str, repository: Repository, name: str, folder: pathlib.Path
) -> Repository | None:
    """Writes one file; None where the repository has none of this name.

    Returns the repository at the commit that the file is of, so that all are of one commit.
    """
    revision = urllib.parse.quote(repository.revision, safe="")
    url = f"{_endpoint()}/{repository.name}/resolve/{revision}/{name}"
    request = urllib.request.Request(url, headers={"User-Agent": "deit_jax"})
    if token := _token():
        # Not for the servers that the hub redirects to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    redirects = _Redirects()
    try:
        answer = urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 404 and _code(error) in ("EntryNotFound", ""):
            error.close()
            return None
        raise
    with answer, open(folder / name, "wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)
    headers = _lower(answer.headers) | redirects.headers
    if problem := _problem(folder / name, headers):
        raise ConfigError(f"{text}: {name} {problem}; start again")
    return repository._replace(revision=headers.get("x-repo-commit", repository.revision))


def _problem(file: pathlib.Path, headers: Mapping[str, str]) -> str:
    """What is wrong where a file has another size or digest than the hub states; ""."""
    size = headers.get("x-linked-size") or headers.get("content-length", "")
    if size.isdecimal() and file.stat().st_size != int(size):
        return f"was cut after {file.stat().st_size:,} of {int(size):,} bytes"
    digest = headers.get("x-linked-etag", "").strip('"')
    if _SHA256.fullmatch(digest):
        try:
            hub.check_digest(file, digest)
        except ConfigError:
            return "was damaged on the way (SHA-256)"
    return ""


def _refusal(repository: Repository, error: urllib.error.HTTPError) -> str:
    """Why the hub does not give a repository, and what would help."""
    with error:
        code, where = _code(error), f"{_endpoint()}/{repository.name}"
    if code == "GatedRepo" or error.code == 403:
        return (
            f"access is restricted: accept the conditions at {where}, and set HF_TOKEN to a token "
            "of that account"
        )
    if code == "RevisionNotFound":
        return f"{where} has no revision {repository.revision!r}"
    if error.code in (401, 404):
        return (
            f"no such repository at {where}, or a private one{_alike(repository)}; $HF_TOKEN "
            + ("is that of another account" if _token() else "is not set")
        )
    return f"{where} answered {error.code} {error.reason}; try again later"


def _alike(repository: Repository) -> str:
    """Published names near the one that was asked for."""
    owner, name = repository.name.split("/")
    published = [known for known in hub.PUBLISHED if "." in known]
    return f"; known: {close_matches(name, published, limit=4)}" if owner == "timm" else ""


def _code(error: urllib.error.HTTPError) -> str:
    return error.headers.get("X-Error-Code", "") if error.headers else ""


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _token() -> str:
    """Of the environment, or as the hub's own command stores it; "" without one."""
    if token := os.environ.get("HF_TOKEN"):
        return token.strip()
    home = os.environ.get("HF_HOME") or pathlib.Path.home() / ".cache" / "huggingface"
    try:
        return pathlib.Path(home, "token").read_text().strip()
    except OSError:
        return ""
