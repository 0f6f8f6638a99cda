"""Collecting what is wrong with a config, so that several mistakes are reported together."""

from collections.abc import Callable
from typing import TypeVar

from deit_jax.errors import ConfigError

T = TypeVar("T")


class Problems:
    """Runs builders and keeps the errors that a user can act on."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def check(self, section: str, build: Callable[..., T], *args, **kwargs) -> T | None:
        """`build(*args, **kwargs)`, or None after noting why it could not be built.

        `section` is put in front of messages that do not say where in the config they arose.
        """
        try:
            return build(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            said = not section or "config." in str(error).splitlines()[0]
            self.add(str(error) if said else f"config.{section}: {error}")
            return None

    def add(self, message: str) -> None:
        if message not in self.messages:
            self.messages.append(message)

    def raise_any(self) -> None:
        """Raises one ConfigError with everything noted so far, if anything was."""
        if self.messages:
            raise ConfigError("\n".join(self.messages))
