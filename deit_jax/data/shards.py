"""Finding the files of a split: by a pattern, in a folder of its name, or by their names."""

import os
import re

from deit_jax import storage
from deit_jax.data.splits import EVAL_NAMES
from deit_jax.errors import ConfigError

# Hugging Face keeps the files of a data set in a folder of its repository.
_FOLDERS = ("", "data")


def find_splits(
    path: str | None, train_split: str | None, eval_split: str | None, suffix: str
) -> tuple[list[str], list[str]]:
    """Paths of the files for training and evaluation, sorted, or in the order of a brace pattern.

    Args:
        path: the folder of the files; None: patterns say where they are.
        train_split, eval_split: a pattern such as `train-{0000..1023}.tar` or `val/*.tar`, or
            a name: of a folder, or a part of the files' names. None: train, and the first of
            val, validation, valid, test that has files.
        suffix: how names end, `.tar` say.

    Raises:
        ConfigError: a split without files, or a file of a brace pattern that is missing.
    """
    if path is None and not (train_split and eval_split):
        raise ConfigError(
            f"path is missing: a folder of *{suffix} files, or give train_split and eval_split "
            f"as patterns, such as DIR/train-{{0000..0146}}{suffix}"
        )
    root = str(storage.path(path).expanduser()) if path else ""
    if path is not None and not storage.path(root).is_dir():
        raise ConfigError(f"path={path} is not a folder; it should hold *{suffix} files")
    train = _files(root, train_split or "train", suffix)
    for name in [eval_split] if eval_split else EVAL_NAMES:
        if files := _files(root, name, suffix, required=bool(eval_split)):
            return train, files
    raise ConfigError(
        f"{root} has no *{suffix} files of {', '.join(EVAL_NAMES)}; say which are for evaluation "
        f"with eval_split, such as eval_split='NAME-{{00..09}}{suffix}'"
    )


def _files(root: str, split: str, suffix: str, *, required: bool = True) -> list[str]:
    if split.endswith(suffix) or re.search(r"[{}*?\[\]]", split):
        files = _matching(root, split)
    else:
        word = re.compile(rf"(?<![a-zA-Z]){re.escape(split)}(?![a-zA-Z])")
        inside = storage.matching(os.path.join(split, "*" + suffix), root)
        beside = [
            file
            for folder in _FOLDERS
            for file in storage.matching(os.path.join(folder, "*" + suffix), root)
            if word.search(os.path.basename(file))
        ]
        files = sorted(inside) or sorted(beside)
    if required and not files:
        packed = storage.matching(f"**/*{suffix}.gz", root)
        raise ConfigError(
            f"no *{suffix} files of split {split!r} in {root or os.getcwd()}"
            + (f"; unpack those that are compressed: gunzip {packed[0]}" if packed else "")
        )
    return files


def _matching(root: str, pattern: str) -> list[str]:
    parts = expand_braces(pattern)
    if any(re.search(r"[*?\[]", part) for part in parts):
        return [file for part in parts for file in storage.matching(part, root)]
    paths = [part if "://" in part else os.path.join(root, part) for part in parts]
    paths = [str(storage.path(path).expanduser()) for path in paths]
    # One listing: asking a bucket for each of a thousand files takes minutes.
    folders = {os.path.dirname(path) for path in paths}
    present = {file for folder in folders for file in storage.matching("*", folder)}
    missing = [path for path in paths if path not in present]
    if missing:
        raise ConfigError(
            f"{len(missing)} of the {len(paths)} files of {pattern} are missing, the first is "
            f"{missing[0]}"
        )
    return paths


def expand_braces(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; `{a,b}` likewise; in this order."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    parts = match[1].split(",")
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        parts = [f"{number:0{len(span[1])}d}" for number in numbers]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [path for part in parts for path in expand_braces(before + part + after)]
