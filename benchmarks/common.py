"""Shared by the benchmarks: versions, hardware, results; makes the library of this checkout known.

Only `environment` needs more than the standard library.
"""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm", "triton")


def versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that are installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def environment() -> dict:
    """Hardware, versions, XLA flags and commit."""
    from deit_jax.train.speed import report

    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return report.hardware() | {"versions": versions(), "commit": commit}


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def report(result: dict, output: str | None) -> None:
    """Prints the result as JSON and, if `output` is set, writes it there."""
    print(json.dumps(result, indent=1))
    if output:
        write(result, output)


def write(result: dict, output: str) -> None:
    """Writes the result as JSON to the file `output`."""
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
