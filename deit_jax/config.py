"""A complete config: what the file sets, defaults from the builders, overrides of the command line.

A config is a `ConfigDict` of sections, made by a Python file (`config_file.py`). Each section
is spread into one builder, and what the file leaves out is filled in from the builder's
signature, so defaults live in one place and every option can be overridden and is written
to the workdir. Where an option names an entry of a table, the options of that entry belong
to the section too, and those of the other entries are unknown keys (`builders.py`).
"""

import ast
import difflib
import inspect
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from deit_jax import builders, config_file, errors
from deit_jax.builders import Option

# In place of a value, in `differences`.
ABSENT = "(absent)"


class Schema(NamedTuple):
    """What there is to set.

    Attributes:
      sections: section name -> its builder, or what has `options(section)` and `choosers`.
      top: options of the run as a whole, outside of any section.
    """

    sections: Mapping[str, Any]
    top: Mapping[str, Option]


def load_config(
    spec: str, overrides: Iterable[str] = (), *, schema: Schema
) -> ml_collections.ConfigDict:
    """The locked, complete config of `FILE[:variant]` with `a.b=c` overrides applied.

    Args:
      spec: path of a config file, optionally followed by `:variant`.
      overrides: `section.key=value` texts; values are parsed by the type of the option.

    Raises:
      ConfigError: every unknown key and wrong value together, naming what would work.
    """
    config, file = config_file.read(spec)
    where = lambda *names: f"{file}:{config_file.line_of(file, names)}: "
    return resolve(config, overrides, schema=schema, where=where)


def resolve(
    config: ml_collections.ConfigDict,
    overrides: Iterable[str] = (),
    *,
    schema: Schema,
    where: Any = lambda *names: "",
) -> ml_collections.ConfigDict:
    """`config`, changed in place: complete, overridden, locked; raises as `load_config`.

    `where(section, key)` is put in front of what is wrong with a value of `config` itself.
    """
    problems = errors.Problems(config)
    given = _split(overrides, problems)
    _check_keys(config, schema, problems, where)
    _complete_options(config, schema.top, "", problems, where)
    options = dict(schema.top)
    for name, section in schema.sections.items():
        if not isinstance(config.get(name), ml_collections.ConfigDict):
            with config.ignore_type():
                config[name] = ml_collections.ConfigDict()
        try:
            known = _choose(config[name], section, name, given)
        except errors.ConfigError as error:
            problems.add(problems.located(name, str(error)))
            given = {k: v for k, v in given.items() if not k.startswith(f"{name}.")}
            continue
        _complete_options(config[name], known, name, problems, where)
        options |= {f"{name}.{key}": option for key, option in known.items()}
    for path, text in given.items():
        try:
            _apply_override(config, path, text, options, schema)
        except errors.ConfigError as error:
            problems.add(str(error))
    problems.raise_any()
    return config.lock()


def split_overrides(arguments: Iterable[str]) -> list[str]:
    """`--config.a.b=c` and `--config.a.b c` as `a.b=c`.

    Raises:
      ConfigError: anything else among the arguments; nothing is silently ignored.
    """
    overrides, wrong = [], []
    arguments = list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--config."):
            wrong.append(argument)
            continue
        override = argument.removeprefix("--config.")
        if "=" not in override and arguments and not arguments[0].startswith("--"):
            override += "=" + arguments.pop(0)
        overrides.append(override)
    if wrong:
        raise errors.ConfigError(
            f"unknown argument {', '.join(map(repr, wrong))}; options are written "
            "--config.section.key=value"
        )
    return overrides


def _split(overrides: Iterable[str], problems: errors.Problems) -> dict[str, str]:
    given = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        if equals:
            given[path] = text
        else:
            problems.add(f"--config.{path} has no value; write --config.{path}=VALUE")
    return given


def _check_keys(config: Any, schema: Schema, problems: errors.Problems, where: Any) -> None:
    """Whether the file's sections exist and are sections."""
    for key in config:
        is_section = isinstance(config[key], ml_collections.ConfigDict)
        if key not in schema.sections and key not in schema.top:
            known = errors.close_matches(key, [*schema.sections, *schema.top])
            problems.add(f"{where(key)}unknown key config.{key}; known: {known}")
        elif key in schema.sections and not is_section:
            problems.add(f"{where(key)}config.{key} is a section of options, not {config[key]!r}")


def _choose(values: Any, section: Any, name: str, given: dict[str, str]) -> dict[str, Option]:
    """The section's options, after the overrides that choose another entry of a table.

    Those overrides are taken out of `given`. What the file sets for the entry that was
    replaced goes with it.
    """
    before = known = builders.options(section, values)
    while True:
        replaced = [k for k in builders.choosers(section, values) if f"{name}.{k}" in given]
        if not replaced:
            break
        for key in replaced:
            path = f"{name}.{key}"
            current = values.get(key, known[key].default)
            with values.ignore_type():
                values[key] = _parsed(path, given.pop(path), known[key].annotation, current)
        known = builders.options(section, values)
    for key in set(before) - set(known):
        if key in values:
            del values[key]
    return known


def _complete_options(
    values: Any, known: Mapping[str, Option], section: str, problems: errors.Problems, where: Any
) -> None:
    """Adds the defaults that are missing; notes keys and values that are wrong."""
    prefix = f"{section}." if section else ""
    for key in sorted(values) if section else ():
        if key not in known:
            near = errors.close_matches(key, known)
            problems.add(f"{where(section, key)}unknown key config.{prefix}{key}; known: {near}")
    for key, option in known.items():
        if key not in values:
            values[key] = _default(option)
            continue
        value = values[key]
        try:
            typed = converted(value, option.annotation)
        except TypeError:
            problems.add(
                f"{where(section, key)}config.{prefix}{key} takes "
                f"{type_name(option.annotation)}, not {value!r}"
            )
        else:
            if typed is not value:
                with values.ignore_type():
                    values[key] = typed


def _default(option: Option) -> Any:
    if option.default is inspect.Parameter.empty:
        return config_dict.required_placeholder(object)
    # A placeholder, so that None can be replaced by any value.
    return config_dict.placeholder(object) if option.default is None else option.default


def _apply_override(
    config: ml_collections.ConfigDict,
    path: str,
    text: str,
    options: Mapping[str, Option],
    schema: Schema,
) -> None:
    if path in config and isinstance(config[path], ml_collections.ConfigDict):
        section: Any = config[path]
        keys = ", ".join(f"{path}.{key}" for key in section)
        raise errors.ConfigError(f"config.{path} is a section; set one of its keys: {keys}")
    if path not in options:
        raise _unknown_key(path, options, config, schema)
    *sections, leaf = path.split(".")
    node: Any = config[sections[0]] if sections else config
    with node.ignore_type():
        node[leaf] = _parsed(path, text, options[path].annotation, node[leaf])


def _unknown_key(
    path: str, known: Iterable[str], config: ml_collections.ConfigDict, schema: Schema
) -> errors.ConfigError:
    section, leaf = path.split(".")[0], path.split(".")[-1]
    in_section = sorted(k for k in known if k.startswith(f"{section}."))
    wrong = path if in_section or "." not in path else section
    reason, near = "", [k for k in known if k.split(".")[-1] == leaf]
    if section in schema.sections:
        values: Any = config[section]
        others = [*builders.owners(schema.sections[section], values, leaf)]
        reason = f" (an option of {section}.{f' and {section}.'.join(others)})" if others else ""
        close = difflib.get_close_matches(
            leaf, [k.partition(".")[2] for k in in_section], cutoff=0.7
        )
        near = near or [f"{section}.{k}" for k in close]
    near = near or difflib.get_close_matches(path, known, 4, cutoff=0.8)
    if near and not reason:
        return errors.ConfigError(f"unknown key config.{wrong}; did you mean {', '.join(near)}?")
    return errors.ConfigError(
        f"unknown key config.{wrong}{reason}; known: "
        + ", ".join(in_section or sorted({k.split(".")[0] for k in known}))
    )


def _parsed(path: str, text: str, annotation: Any, current: Any) -> Any:
    """The value of an override's text."""
    try:
        return _parse(text, annotation)
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
        raise errors.ConfigError(
            f"config.{path} takes {type_name(annotation)} (now {current!r}), not {text[:100]!r}"
        ) from None


def _parse(text: str, annotation: Any) -> Any:
    kinds = _alternatives(annotation)
    if text.lower() == "none" and types.NoneType in kinds:
        return None
    if bool in kinds and text.lower() in ("true", "false", "1", "0"):
        return text.lower() in ("true", "1")
    if str in kinds:
        return text
    sequences = [kind for kind in kinds if _is_sequence(kind)]
    if any(typing.get_args(kind)[:1] == (str,) for kind in sequences):
        return tuple(part.strip() for part in text.strip("()").split(",") if part.strip())
    value = ast.literal_eval(text)
    if sequences and not isinstance(value, tuple | list):
        scalars = [kind for kind in kinds if not _is_sequence(kind)]
        if not any(_is_a(value, kind) for kind in scalars):
            value = (value,)
    return converted(value, annotation)


def converted(value: Any, annotation: Any) -> Any:
    """`value` as the annotation says; an int serves as a float, a list as a tuple.

    Raises:
      TypeError: it is of another type, a float that is not finite, or an int beyond 64 bits.
    """
    kinds = _alternatives(annotation)
    for kind in kinds:
        if _is_a(value, kind):
            return value
    for kind in kinds:
        if kind is float and isinstance(value, int) and _is_a(value, int):
            return float(value)
        if _is_sequence(kind) and isinstance(value, tuple | list):
            items = typing.get_args(kind)
            kinds_of_items = items[:1] * len(value) if items[-1:] == (...,) else items
            if items and len(kinds_of_items) != len(value):
                continue
            pairs = zip(value, kinds_of_items or (Any,) * len(value), strict=True)
            return tuple(converted(item, kind) for item, kind in pairs)
    raise TypeError


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """`int | None` as (int, NoneType)."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is_sequence(kind: Any) -> bool:
    return kind in (tuple, list) or typing.get_origin(kind) in (tuple, list)


def _is_a(value: Any, kind: Any) -> bool:
    if kind in (Any, object, inspect.Parameter.empty):
        return True
    if kind is float:
        return isinstance(value, float) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(kind, type) and not _is_sequence(kind) and isinstance(value, kind)


def type_name(annotation: Any) -> str:
    """`int or None` for `int | None`."""
    kinds = _alternatives(annotation)
    names = [str(kind) if typing.get_args(kind) else kind.__name__ for kind in kinds]
    return " or ".join(names).replace("NoneType", "None")


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """`{'section.key': value}` of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(config: ml_collections.ConfigDict) -> str:
    """The resolved config as JSON text, one line per key."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def differences(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple]:
    """`{'section.key': (stored, now)}` for every value that is not the same."""
    old, new = flatten(stored), flatten(json.loads(json.dumps(config)))
    return {
        key: (old.get(key, ABSENT), new.get(key, ABSENT))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ABSENT) != new.get(key, ABSENT)
    }
