"""Provenance of a checkpoint: package versions, platform, commit of the source tree."""

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

import deit_jax

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-datasets",
)


def collect() -> dict[str, Any]:
    """JSON values: `{"deit_jax": version, "python", "platform", "packages": {...}, "git": ...}`.

    Packages that are not installed are left out. `git` is `{"commit": ..., "dirty": bool}`
    when this package runs from its own working tree and git is installed, else None.
    """
    return {
        "deit_jax": deit_jax.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": git_state(pathlib.Path(deit_jax.__file__).resolve().parent.parent),
    }


def git_state(root: pathlib.Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the working tree with its top level at `root`.

    None if `root` is not a top level: an installed package may be inside another
    repository, whose commit says nothing about it.
    """
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    if commit is None or status is None:
        return None
    return {"commit": commit, "dirty": bool(status)}


def _git(root: pathlib.Path, *args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
