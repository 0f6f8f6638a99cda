"""Loading a config file, completing it from the builders, and overriding it from the command line.

A config is a Python file with `get_config(variant)` that returns a `ConfigDict` of
sections. Each section is spread into one keyword-only builder, and what the file
leaves out is filled in from the builder's signature, so defaults live in one place
and every option can be overridden and is written to the workdir.
"""

import ast
import difflib
import importlib.util
import inspect
import json
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections
from ml_collections import config_dict

from deit_jax import errors


class Option(NamedTuple):
    """One key of a section: its default (None: unset) and annotation."""

    default: Any
    annotation: Any


# Section name -> function of the section's keys so far -> its options.
Sections = Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Option]]]


def load_config(
    spec: str, overrides: Iterable[str] = (), *, sections: Sections, top: Mapping[str, Option]
) -> ml_collections.ConfigDict:
    """The locked, complete config of `FILE[:variant]` with `a.b=c` overrides applied.

    Args:
      spec: path of a config file, optionally followed by `:variant`.
      overrides: `section.key=value` texts; values are parsed by the type of the default.
      sections, top: what there is to set, see `train/schema.py`.

    Raises:
      ConfigError: every unknown key and wrong type at once, naming what would work.
    """
    return resolve(_read(spec), overrides, sections=sections, top=top)


def resolve(
    config: ml_collections.ConfigDict,
    overrides: Iterable[str] = (),
    *,
    sections: Sections,
    top: Mapping[str, Option],
) -> ml_collections.ConfigDict:
    """`config`, changed in place: complete, overridden, locked; raises as `load_config`."""
    overrides = list(overrides)
    problems = []
    # The model's options depend on its name, so that comes first.
    overrides.sort(key=lambda text: not text.startswith("model.name="))
    if overrides and overrides[0].startswith("model.name=") and "model" in config:
        config.model.name = overrides.pop(0).partition("=")[2]
    problems += complete(config, sections, top)
    nullable = _nullable(config, sections, top)
    for override in overrides:
        try:
            _apply_override(config, override, nullable)
        except errors.ConfigError as error:
            problems.append(str(error))
    if problems:
        raise errors.ConfigError("\n".join(problems))
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
            f"unknown argument {', '.join(map(repr, wrong))}; settings are written "
            "--config.section.key=value"
        )
    return overrides


def _read(spec: str) -> ml_collections.ConfigDict:
    file, _, variant = spec.partition(":")
    path = pathlib.Path(file)
    if not path.is_file():
        shipped = sorted(str(p) for p in path.parent.glob("*.py")) or ["configs/deit.py"]
        raise errors.ConfigError(
            f"no config file {file!r}; {path.parent} holds: {', '.join(shipped)}"
        )
    # Recipes share sections through `from configs import common`.
    root = str(path.resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    module_spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise errors.ConfigError(f"{file} has no get_config(variant) function")
    variants = getattr(module, "VARIANTS", None)
    if variants is not None and not variant:
        variant = next(iter(variants))
    if variants is not None and variant not in variants:
        raise errors.ConfigError(
            f"unknown variant {variant!r} of {file}; known: {', '.join(variants)}"
        )
    return module.get_config(variant) if variants is not None else module.get_config()


def complete(
    config: ml_collections.ConfigDict, sections: Sections, top: Mapping[str, Option]
) -> list[str]:
    """Adds, in place, every option that the file leaves out; returns what is wrong.

    A key that no builder of its section takes is reported with the nearest ones.
    """
    problems = []
    for key in sorted(set(config) - set(sections) - set(top)):
        known = errors.close_matches(key, [*sections, *top])
        problems.append(f"unknown key config.{key}; known: {known}")
    for key, option in top.items():
        if key not in config:
            config[key] = _field(option)
    for section, options in sections.items():
        if section not in config:
            config[section] = ml_collections.ConfigDict()
        try:
            known = options(config[section])
        except errors.ConfigError as error:
            problems.append(f"config.{section}: {error}")
            continue
        for key in config[section]:
            if key not in known:
                near = errors.close_matches(key, known)
                problems.append(f"unknown key config.{section}.{key}; known: {near}")
        for key, option in known.items():
            if key not in config[section]:
                config[section][key] = _field(option)
    return problems


def _nullable(
    config: ml_collections.ConfigDict, sections: Sections, top: Mapping[str, Option]
) -> set[str]:
    """The keys that may be None, by their annotation or because that is their default."""
    known = dict(top)
    for section, options in sections.items():
        try:
            known |= {f"{section}.{key}": o for key, o in options(config[section]).items()}
        except errors.ConfigError:
            continue  # reported by `complete`
    return {
        key
        for key, option in known.items()
        if option.default is None or types.NoneType in typing.get_args(option.annotation)
    }


def _field(option: Option) -> Any:
    if option.default is inspect.Parameter.empty:
        return config_dict.required_placeholder(object)
    if option.default is not None:
        return option.default
    kinds = [t for t in typing.get_args(option.annotation) if t is not types.NoneType]
    kind = kinds[0] if len(kinds) == 1 else object
    return config_dict.placeholder(typing.get_origin(kind) or kind)


def _apply_override(config: ml_collections.ConfigDict, override: str, nullable: set[str]) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise errors.ConfigError(f"--config.{path} has no value; write --config.{path}=VALUE")
    *sections, leaf = path.split(".")
    node = config
    for depth, section in enumerate(sections):
        if section not in node or not isinstance(node[section], ml_collections.ConfigDict):
            raise _unknown_key(config, path, ".".join(sections[: depth + 1]))
        node = node[section]
    if leaf not in node:
        raise _unknown_key(config, path, path)
    if isinstance(node[leaf], ml_collections.ConfigDict):
        keys = ", ".join(f"{path}.{key}" for key in node[leaf])
        raise errors.ConfigError(f"config.{path} is a section; set one of its keys: {keys}")
    if text.lower() == "none" and path in nullable:
        node[leaf] = None
    else:
        node[leaf] = _parse(path, text, node.get_type(leaf), node[leaf])


def _unknown_key(config: ml_collections.ConfigDict, path: str, missing: str) -> errors.ConfigError:
    known = list(flatten(config))
    leaf = path.split(".")[-1]
    same_leaf = [k for k in known if k.split(".")[-1] == leaf]
    near = same_leaf + [k for k in difflib.get_close_matches(path, known, 4) if k not in same_leaf]
    if not near:
        near = [k for k in known if k.split(".")[0] == path.split(".")[0]] or sorted(config)
    return errors.ConfigError(f"unknown key config.{missing}; near ones: {', '.join(near[:8])}")


def _parse(path: str, text: str, kind: type, current: Any) -> Any:
    wrong = errors.ConfigError(
        f"config.{path} takes {kind.__name__} (now {current!r}), not {text!r}"
    )
    if kind is str:
        return text
    if kind is bool:
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise wrong
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if kind in (type(None), object):
            return text
        raise wrong from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (tuple, list):
        items = tuple(value) if isinstance(value, (tuple, list)) else (value,)
        if current and any(type(item) is not type(current[0]) for item in items):
            floats = isinstance(current[0], float) and all(type(i) in (int, float) for i in items)
            if not floats:
                raise wrong
            items = tuple(float(item) for item in items)
        return kind(items)
    if kind not in (type(None), object) and type(value) is not kind:
        raise wrong
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{'section.key': value}` of a nested config."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_json(config: ml_collections.ConfigDict) -> str:
    """The resolved config as JSON text, one key a line."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def differences(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, tuple]:
    """`{'section.key': (stored, now)}` for every value that is not the same."""
    old, new = flatten(stored), flatten(json.loads(json.dumps(config)))
    missing = "(absent)"
    return {
        key: (old.get(key, missing), new.get(key, missing))
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    }
