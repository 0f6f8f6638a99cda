"""The folder of a run's checkpoints: names, manifests, damaged steps and unfinished ones.

    checkpoints/120/            one committed step; parts of it:
      params/ batch_stats/ ema/ train/    arrays
      manifest/data.json        shape, dtype and digest of every array, checksums of the JSON
      metadata/data.json        config, model, class names, versions, metrics
    checkpoints/damaged-100/    set aside after it failed to verify; never deleted by us

A step is committed by one rename, so a folder named by a bare number is whole unless the
storage damaged it later. A bucket has no renames: there a step is whole once orbax has noted
in it when it was committed, which is the last that is written and the first that is deleted.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from deit_jax import storage
from deit_jax.checkpoint.retention import Retention
from deit_jax.errors import ConfigError, RunStopped

MANIFEST = "manifest"
METADATA = "metadata"
_DAMAGED = "damaged-"
# Signs that the machine is in trouble, not the checkpoint: never a reason to fall back.
MACHINE_ERRNOS = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    errno.ETIMEDOUT,
)
# Either says in a bucket that a step is whole; one that was copied there has the second alone.
_COMMIT_NOTES = ("commit_success.txt", "_CHECKPOINT_METADATA")
# A step below 2**31 as we write it; `007` and the digits of other scripts are not ours.
_STEP = re.compile(r"(0|[1-9][0-9]{0,8})$")
_UNFINISHED = re.compile(r"^\d+(\.orbax-checkpoint-tmp.*|\.deleting)$")


class CheckpointError(ConfigError):
    """The folder of checkpoints cannot be used, or none in it passes verification."""


class SaveFailedError(RunStopped):
    """Checkpoints can no longer be written; those saved earlier are intact."""


class DamagedCheckpointError(CheckpointError):
    """One checkpoint differs from what was saved; the message names where."""


class StructureError(ConfigError):
    """An intact checkpoint holds another model, optimizer or state than the requested one."""


def steps_in(directory: storage.Path) -> list[int]:
    """Steps committed in `directory`, ascending, damaged ones included."""
    names = [name for name in _names_in(directory) if _STEP.match(name)]
    return sorted(int(name) for name in names if _is_committed(directory / name))


def _is_committed(folder: storage.Path) -> bool:
    success, metadata = (folder / name for name in _COMMIT_NOTES)
    if not storage.is_remote(folder) or success.exists():
        return True
    try:
        return bool(json.loads(metadata.read_bytes()).get("commit_timestamp_nsecs"))
    except (FileNotFoundError, ValueError, AttributeError):
        return False


def damaged_in(directory: storage.Path) -> list[str]:
    """Names of the folders that were set aside."""
    return sorted(name for name in _names_in(directory) if name.startswith(_DAMAGED))


def _names_in(directory: storage.Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []


def remove_unfinished(directory: storage.Path) -> None:
    """Deletes steps that a killed run left half written or half deleted."""
    for name in _names_in(directory):
        cut = _STEP.match(name) and not _is_committed(directory / name)
        if cut or _UNFINISHED.match(name):
            storage.remove_tree(directory / name)


def remove_step(directory: storage.Path, step: int) -> None:
    """Deletes one step. A kill in the middle must not leave half of it to be taken for whole."""
    doomed = directory / str(step)
    if not storage.is_remote(doomed):
        doomed = storage.move_tree(doomed, directory / f"{step}.deleting")
    storage.remove_tree(doomed, first=_COMMIT_NOTES)


def set_aside(directory: storage.Path, step: int) -> storage.Path:
    """Renames a step to `damaged-<step>` (then `damaged-<step>-2`, ...); returns the new path."""
    folder, count = directory / f"{_DAMAGED}{step}", 1
    while folder.exists():
        count += 1
        folder = directory / f"{_DAMAGED}{step}-{count}"
    return storage.move_tree(directory / str(step), folder, last=_COMMIT_NOTES)


def to_json(value: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """`value` as JSON gives it back: tuples are lists, NaN and infinities are None.

    Raises:
      TypeError: names what is not JSON.
    """

    def plain(item: Any, path: str) -> Any:
        if isinstance(item, Mapping):
            return {str(key): plain(child, f"{path}.{key}") for key, child in item.items()}
        if isinstance(item, list | tuple):
            return [plain(child, f"{path}[{n}]") for n, child in enumerate(item)]
        if isinstance(item, float):
            return item if item - item == 0 else None
        if item is None or isinstance(item, str | int | bool):
            return item
        if getattr(item, "shape", None) == ():
            return plain(item.item(), path)
        raise TypeError(f"{path} is a {type(item).__name__}, which JSON cannot hold")

    return plain(value, what)


def make_manifest(
    leaves: Mapping[str, Any], digests: Mapping[str, int], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Checked on restore: every array's shape, dtype, digest; checksums of the JSON."""
    body = {
        "format": 1,
        "leaves": {
            name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digests[name]}
            for name, leaf in leaves.items()
        },
        "metadata_sha256": _sha256(metadata),
    }
    return body | {"sha256": _sha256(body)}


class Described(NamedTuple):
    """Manifest and metadata of a step, checksums verified."""

    leaves: dict[str, dict[str, Any]]
    metadata: dict[str, Any]


def read_description(folder: storage.Path) -> Described:
    """Manifest and metadata of one step.

    Raises:
      DamagedCheckpointError: a file is missing, cut or changed, or the folder's name is
        another step's.
      CheckpointError: the machine does not let us read it.
    """
    manifest = _read_json(folder, MANIFEST)
    metadata = _read_json(folder, METADATA)
    checksum = manifest.pop("sha256", None)
    for part, stored, value in (
        (MANIFEST, checksum, manifest),
        (METADATA, manifest.get("metadata_sha256"), metadata),
    ):
        if stored != _sha256(value):
            raise DamagedCheckpointError(f"{_json_file(folder, part)} does not match its checksum")
    step = metadata.get("checkpoint", {}).get("step")
    if _STEP.match(folder.name) and step is not None and step != int(folder.name):
        raise DamagedCheckpointError(f"{folder} holds step {step:,}")
    return Described(manifest["leaves"], metadata)


def check_digests(folder: storage.Path, described: Described, found: Mapping[str, int]) -> None:
    """Raises DamagedCheckpointError that names arrays whose values are not those saved."""
    saved = described.leaves
    bad = [name for name, value in found.items() if saved[name]["digest"] != value]
    if bad:
        names = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise DamagedCheckpointError(f"{folder}: values are not those that were saved: {names}")


def structural_differences(
    saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any]
) -> list[str]:
    """Every missing, unexpected or differently shaped or typed array, one line each."""
    lines = [f"{name}: not in the checkpoint" for name in wanted if name not in saved]
    lines += [f"{name}: only in the checkpoint" for name in saved if name not in wanted]
    for name in [name for name in wanted if name in saved]:
        here = f"{saved[name]['dtype']}{list(saved[name]['shape'])}"
        there = f"{wanted[name].dtype}{list(wanted[name].shape)}"
        if here != there:
            lines.append(f"{name}: {here} in the checkpoint, {there} wanted")
    return lines


class SelectedStep(NamedTuple):
    """One step's folder; `selection` names the step that `which` selected, "" for the latest."""

    folder: storage.Path
    selection: str


def select_step(path: str | os.PathLike | storage.Path, *, which: str = "latest") -> SelectedStep:
    """One step of a run.

    Args:
      path: a workdir, its `checkpoints` folder, or (for the latest) one step's folder.
      which: `latest`, `best` by the metric that the run selects by, or a step.

    Raises:
      FileNotFoundError: no checkpoint there.
      ConfigError: there is no such step, or none with a value of the metric.
      DamagedCheckpointError: for `best`, the metadata of any step fail to verify.
    """
    folder = storage.path(path).absolute()
    if (folder / MANIFEST).is_dir():
        if which != "latest":
            raise ConfigError(f"{path} is one step; for which={which!r} give the run's workdir")
        return SelectedStep(folder, "")
    if (folder / "checkpoints").is_dir():
        folder = folder / "checkpoints"
    steps = steps_in(folder)
    if not steps:
        raise FileNotFoundError(
            f"no checkpoint in {path}; give a workdir, its checkpoints folder, or one step's folder"
        )
    if which == "latest":
        return SelectedStep(folder / str(steps[-1]), "")
    if which == "best":
        step, selection = _best_step(folder, steps)
        return SelectedStep(folder / str(step), f"best of {path}: {selection}")
    if not which.isdecimal():
        raise ConfigError(f"which must be latest, best or a step, not {which!r}")
    if int(which) not in steps:
        raise ConfigError(f"{path} has no step {which}; steps: {', '.join(map(str, steps))}")
    return SelectedStep(folder / str(int(which)), f"step {int(which):,} of {path}")


def _best_step(folder: storage.Path, steps: list[int]) -> tuple[int, str]:
    """The best step by the metric of the newest one, and `step 5, METRIC VALUE`."""
    notes = {step: read_description(folder / str(step)).metadata["checkpoint"] for step in steps}
    metric, higher = (notes[steps[-1]][key] for key in ("best_metric", "higher_is_better"))
    retention = Retention(best_metric=metric, higher_is_better=higher)
    metrics = {step: note["metrics"] for step, note in notes.items()}
    ranked = retention.ranked(metrics)
    if not ranked:
        what = f"has a value of {metric}" if metric else "was saved with a best_metric"
        raise ConfigError(f"{folder}: which='best' selects no step, as no checkpoint {what}")
    return ranked[0], f"step {ranked[0]:,}, {metric} {metrics[ranked[0]][metric]:.4g}"


def _json_file(folder: storage.Path, part: str) -> storage.Path:
    return folder / part / "data.json"


def _read_json(folder: storage.Path, part: str) -> dict[str, Any]:
    file = _json_file(folder, part)
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file} is missing") from error
    except OSError as error:
        kind = CheckpointError if error.errno in MACHINE_ERRNOS else DamagedCheckpointError
        raise kind(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{file} is not a JSON object")
    return value


def _sha256(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
