"""The folder of a run: its config, and whether a second start may resume in it."""

import fnmatch
import json
import os
from collections.abc import Mapping
from typing import Any

from deit_jax import config as config_lib
from deit_jax import storage
from deit_jax.errors import ConfigError

# What may change between two starts of one run without changing what it computes.
HARMLESS = (
    "data.data_dir",
    "data.path",
    "input.threads",
    "input.prefetch",
    "train.log_every_steps",
    "train.eval_every_*",
    "train.checkpoint_every_*",
    "train.stop_at_step",
    "checkpoint.*",
    "teacher.record",
    "teacher.label_k",
    "eval.*",
    "log.*",
    "mesh.*",
    "nonfinite.*",
    "profile",
    "compilation_cache",
)
LENGTH = ("train.total_epochs", "train.total_steps")


def open_workdir(
    path: str | os.PathLike | storage.Path, config: Any, *, force_resume: bool = False
) -> tuple[storage.Path, list[str]]:
    """Makes the folder and checks that its run, if it has one, is that of the config.

    Returns the folder and notices for the user: a run that is made longer or shorter
    resumes under the schedule of the new length.

    Raises:
      ConfigError: the folder cannot be written, is in a store other than `gs://`, or has a run
        whose config differs in a way that changes the results; the message names the keys and
        both values.
    """
    folder = storage.writable(path, "--workdir")
    if isinstance(folder, storage.StorePath) and folder.scheme != "gs":
        raise ConfigError(
            f"--workdir={folder}: checkpoints can be written to local paths and gs:// alone; "
            "mount the store, or train in a local folder and copy it"
        )
    stored_file = folder / "config.json"
    if not stored_file.exists():
        return folder, []
    changed = config_lib.differences(_read_stored(stored_file), config.to_dict())
    serious = {k: v for k, v in changed.items() if not _may_change(k)}
    lines = [
        f"  config.{key}: was {old!r}, now {new!r}"
        for key, (old, new) in (serious or changed).items()
    ]
    if serious and not force_resume:
        raise ConfigError(
            f"{folder} contains a run with another config:\n"
            + "\n".join(lines)
            + "\nChoose another --workdir, or add --force_resume to resume with the new values"
        )
    if not serious and not changed.keys() & set(LENGTH):
        return folder, []
    follows = "the learning-rate schedule follows them from now on"
    return folder, [f"resuming in {folder} with changed options ({follows}):", *lines]


def foreign(metadata: Mapping[str, Any], config: Any) -> str:
    """How the run of a checkpoint differs from that of the config; "" if it does not.

    Options that only one of the two has are those of another version of the library.
    """
    absent = config_lib.ABSENT
    changed = config_lib.differences(metadata.get("config", {}), config.to_dict())
    differ = [
        f"config.{key} was {old!r}, now {new!r}"
        for key, (old, new) in changed.items()
        if absent not in (old, new) and not _may_change(key)
    ]
    return f"{', '.join(differ)}; --force_resume takes it" if differ else ""


def store_config(folder: storage.Path, config: Any) -> None:
    """Writes the resolved config to `config.json`, in one operation."""
    storage.write(folder / "config.json", config_lib.to_json(config))


def _may_change(key: str) -> bool:
    return any(fnmatch.fnmatch(key, pattern) for pattern in HARMLESS + LENGTH)


def _read_stored(file: storage.Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text())
        if not isinstance(stored, dict):
            raise ValueError("it is not a JSON object")
        return stored
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} cannot be read ({error}), so it is unknown which run the folder contains; "
            "restore the file or choose another --workdir"
        ) from error
