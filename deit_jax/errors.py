"""Errors that a user can act on, and the words to say them with."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """What a user asked for cannot be done; the message says what would work.

    `train.py` and the `deit-jax` command print it without a traceback.
    """


class RunStopped(RuntimeError):
    """A run ended before its last step; `exit_code` is the process's exit status."""

    exit_code = 1


def close_matches(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """The known names, comma separated, nearest to `name` first; the first `limit` of many."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=limit, cutoff=0.6)
    if len(known) <= limit:
        return ", ".join(near + [other for other in known if other not in near])
    return ", ".join(near or known[:limit]) + ", ..."


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """`unknown model 'deit_x'; known: ...`, nearest names first."""
    return ConfigError(f"unknown {what} {name!r}; known: {close_matches(name, known)}")
