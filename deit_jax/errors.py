"""Errors that a user can act on, and collecting several of them before anything starts."""

import argparse
import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn


class ConfigError(ValueError):
    """What a user asked for cannot be done; the message says what would work.

    `train.py` and the `deit-jax` command print it without a traceback.
    """


class RunStopped(RuntimeError):
    """A run ended before its last step; `exit_code` is the process's exit status."""

    exit_code = 1


def printable(text: str, *, limit: int | None = None) -> str:
    """`text` from a file for the terminal: control characters escaped, cut after `limit`."""
    if limit is not None and len(text) > limit:
        text = text[:limit] + " ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def screen(error: Exception) -> str:
    """The message of an error for the terminal, whatever a user or a file put into it."""
    return "\n".join(printable(line, limit=5000) for line in str(error).split("\n"))


class ArgumentParser(argparse.ArgumentParser):
    """Options of a command; a mistake is one line and exit status 2, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Ends the process."""
        text = printable(" ".join(message.split()), limit=1000)
        self.exit(2, f"{self.prog}: {text}; see {self.prog} --help\n")


def close_matches(name: str, known: Iterable[str], *, limit: int = 12) -> str:
    """The known names, comma separated, nearest to `name` first; the first `limit` of many."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=limit, cutoff=0.6)
    if len(known) <= limit:
        return ", ".join(near + [other for other in known if other not in near])
    return ", ".join(near or known[:limit]) + ", ..."


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """`unknown model 'deit_x'; known: ...`, nearest names first."""
    near = close_matches(str(name)[:100], known)
    return ConfigError(f"unknown {what} {repr(name)[:100]}; known: {near}")


def check_at_most(most: float, **values: Any) -> None:
    """Raises ConfigError unless every number, and every number of a tuple, is at most `most`.

    What is larger by far than anything that could be meant is a slip of the hand, and would
    overflow 32 bits or take for ever.
    """
    for name, value in values.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(number is not None and number > most for number in numbers):
            raise ConfigError(f"{name} must be at most {most:,}, not {value}")


class Problems:
    """Collects what is wrong with a config, so that all mistakes are reported together.

        problems = Problems(config)
        with problems.section("optim"):
            tx = make_optimizer(params, schedule, **config.optim)
        problems.raise_any()

    Only what a user can mend is collected; a programmer's error keeps its traceback.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self.messages: list[str] = []

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Keeps a ConfigError, or what a file answers, with `config.NAME` in front."""
        try:
            yield
        except (ConfigError, OSError) as error:
            self.add(self.located(name, str(error)))

    def add(self, message: str) -> None:
        """Notes a message once."""
        if message not in self.messages:
            self.messages.append(message)

    def raise_any(self) -> None:
        """Raises one ConfigError with everything noted so far, if anything was."""
        if self.messages:
            raise ConfigError("\n".join(self.messages))

    def located(self, section: str, message: str) -> str:
        """A message with the option that it is about in front, or else with the section."""
        if not section or re.match(r"(config\.|--)", message):
            return message
        first, second = (*re.split(r"\W", message, maxsplit=2), "")[:2]
        values: Any = self._config.get(section)
        if not hasattr(values, "keys"):
            return f"config.{section}: {message}"
        if first in values:
            return f"config.{section}.{message}"
        # "unknown operation 'x'" is about `operations`, "unknown model 'x'" about `name`.
        named = [second, f"{second}s", *(["name"] if second == "model" else [])]
        for key in named if first == "unknown" else ():
            if key in values:
                return f"config.{section}.{key}: {message}"
        return f"config.{section}: {message}"
