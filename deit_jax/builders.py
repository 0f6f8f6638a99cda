"""Builders and the tables they choose from: which options a section has, and who gets which.

A builder's keyword-only parameters are the options of its config section. Where an option
names an entry of a table (`optim.name`, `loss.base`), the keyword-only parameters of that
entry are options of the section too, and those of the other entries are unknown keys. So a
new optimizer is one function and one line in `OPTIMIZERS`, and its options need no other place.

    @chooses(name=OPTIMIZERS)
    def make_optimizer(params, schedule, *, name="adamw", clip_norm=None, **options):
        direction = choose(OPTIMIZERS, name, "optimizer")
        return optax.chain(direction(params, **options), ...)
"""

import contextlib
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from deit_jax import errors

Table = Mapping[str, Any]
# From an option's value to the functions whose options it adds.
Chosen = Callable[[Any], Iterable[Callable]]
Build = typing.TypeVar("Build", bound=Callable)


class Option(NamedTuple):
    """One key of a section: its default (`inspect.Parameter.empty`: required) and annotation."""

    default: Any
    annotation: Any


def choose(table: Table, name: str, what: str) -> Any:
    """The entry `name` of a table.

    Raises:
      ConfigError: `unknown WHAT 'NAME'; known: ...`, nearest names first.
    """
    if name not in table:
        raise errors.unknown(what, name, table)
    return table[name]


def chooses(**choices: Table | Chosen) -> Callable[[Build], Build]:
    """Declares the tables that a builder's options choose from.

    Args:
      choices: for an option of the builder, the table that its value names an entry of (or,
        for a tuple, several), or a function from the value to the functions it stands for.
    """

    def declare(build: Build) -> Build:
        build.choices = choices
        return build

    return declare


def composes(*tables: Table) -> Callable[[Build], Build]:
    """Declares that a builder spreads its options over every entry of its tables."""
    return chooses(**{"": lambda _: [entry for table in tables for entry in table.values()]})


def keywords(build: Callable) -> dict[str, Option]:
    """The keyword-only parameters of one function or class."""
    parameters = inspect.signature(build).parameters.values()
    hints = typing.get_type_hints(build if inspect.isroutine(build) else build.__init__)
    return {
        p.name: Option(p.default, hints.get(p.name, p.annotation))
        for p in parameters
        if p.kind is p.KEYWORD_ONLY
    }


class Section(NamedTuple):
    """Options that no signature holds, such as the attributes of a model's class.

    Attributes:
      options: from what the section sets to all of its options.
      choosers: the options that choose, see `chooses`.
    """

    options: Callable[[Mapping[str, Any]], dict[str, Option]]
    choosers: tuple[str, ...]


def options(build: Callable | Section, section: Mapping[str, Any]) -> dict[str, Option]:
    """Every option of a builder, given those that its section sets.

    Raises:
      ConfigError: the section names an entry that its table does not have.
    """
    if isinstance(build, Section):
        return build.options(section)
    known = keywords(build)
    for entry in _chosen(build, section):
        known |= options(entry, section)
    return known


def choosers(build: Callable | Section, section: Mapping[str, Any]) -> set[str]:
    """The options that choose an entry of a table, those of chosen entries included."""
    if isinstance(build, Section):
        return set(build.choosers)
    found = {key for key in getattr(build, "choices", {}) if key}
    return found.union(*(choosers(entry, section) for entry in _chosen(build, section)))


def owners(build: Callable | Section, section: Mapping[str, Any], key: str) -> Iterator[str]:
    """`name=sgd` for every choice that would make `key` an option."""
    for chooser, choice in getattr(build, "choices", {}).items():
        if isinstance(choice, Mapping):
            entries = choice.items()
            yield from (f"{chooser}={name}" for name, e in entries if key in options(e, section))
        elif chooser:
            yield from (f"{chooser}={value or repr('')}" for value in _given(choice, section, key))
    if not isinstance(build, Section):
        for entry in _chosen(build, section):
            yield from owners(entry, section, key)


def _given(choice: Chosen, section: Mapping[str, Any], key: str) -> Iterator[str]:
    """Whether an option that is left empty, or names some folder, makes `key` an option."""
    for value in ("", "DIR"):
        with contextlib.suppress(errors.ConfigError):
            if any(key in options(entry, section) for entry in choice(value)):
                yield value


def bind(function: Callable, given: Mapping[str, Any]) -> Callable:
    """`function` with those of the given options that it, or what it chooses, takes."""
    known = options(function, given)
    return functools.partial(function, **{k: v for k, v in given.items() if k in known})


def headline(function: Callable) -> str:
    """The first line of a docstring, without its full stop."""
    text = inspect.getdoc(inspect.unwrap(getattr(function, "func", function))) or ""
    return text.split("\n")[0].rstrip(".")


def narrate(table: Table, name: str, section: Mapping[str, Any]) -> str:
    """`adamw: AdamW (beta1 0.9, beta2 0.999)`: an entry, in the words of its docstring."""
    known = keywords(table[name])
    values = ", ".join(f"{key} {plain(section[key])}" for key in known if key in section)
    return f"{name}: {headline(table[name])}" + (f" ({values})" if values else "")


def plain(value: Any) -> str:
    """A config value as a reader writes it: `0.9`, `none`, `true`, `(0.08, 1)`."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(plain, value)) + ")"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def headlines(build: Callable, section: Mapping[str, Any]) -> list[str]:
    """The headline of a builder and those of the entries that its options choose."""
    chosen = [line for entry in _chosen(build, section) for line in headlines(entry, section)]
    return [headline(build), *chosen]


def _chosen(build: Callable, section: Mapping[str, Any]) -> Iterator[Callable]:
    """Every entry that the options of a builder choose."""
    for key, choice in getattr(build, "choices", {}).items():
        value: Any = section.get(key, keywords(build)[key].default) if key else None
        if isinstance(choice, Mapping):
            names = value if isinstance(value, tuple | list) else [value]
            yield from (choose(choice, name, key) for name in names)
        else:
            yield from choice(value)
