"""Reading a config file: a Python file with `get_config(variant)`, and what can be wrong with it.

A file is given by its path (`./mine.py`), a recipe that comes with the library by its name
(`finetune`). Recipes are in `configs/` of a checkout, and in the wheel beside the library.
`VARIANTS` are the names of the file's variants. `MODES` are functions from config to config whose
names may follow a variant after a comma, such as `tiny` in `FILE:VARIANT,tiny`.
Whatever a file does wrong (a syntax error, a missing import, an exception, a wrong value) is
one line that names the file and the line number.
"""

import ast
import importlib.machinery
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from typing import Any

import ml_collections

from deit_jax.errors import ConfigError, close_matches

_PACKAGE = pathlib.Path(__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "shipped" / "configs"
SHIPPED = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent / "configs"


def recipes() -> list[str]:
    """Names of the recipes that come with the library."""
    is_recipe = lambda file: "\ndef get_config(" in file.read_text()
    return sorted(file.stem for file in SHIPPED.glob("*.py") if is_recipe(file))


def find(name: str) -> pathlib.Path:
    """The file of a path, or of the name of a recipe that comes with the library.

    Raises:
      ConfigError: there is none; it names those that there are.
    """
    path = pathlib.Path(name)
    if os.path.isfile(path):  # unlike pathlib's, of any text
        return path
    is_name = path.name == name and path.suffix != ".py"
    if is_name and name in recipes():
        return SHIPPED / f"{name}.py"
    known = close_matches(path.stem, recipes())
    if is_name:
        raise ConfigError(f"no recipe {name!r}; known: {known}; or a file, such as ./mine.py")
    files = close_matches(name, (str(p) for p in path.parent.glob("*.py")))
    there = f"{path.parent} has: {files}" if files else f"recipes by name: {known}"
    raise ConfigError(f"no config file {name!r}; {there}")


def read(spec: str) -> tuple[ml_collections.ConfigDict, pathlib.Path]:
    """The config that `FILE[:variant[,mode]]` gives, not yet complete, and the file.

    `FILE` is a path or the name of a recipe, see `find`.

    Raises:
      ConfigError: no such file, variant or mode, or a file that does not give a config.
    """
    if "://" in spec:
        raise ConfigError(f"--config={spec}: a config file must be on this machine; copy it")
    file, _, variant = spec.partition(":")
    path = find(file)
    module = _execute(path)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{file}:1: there is no function get_config(variant) in this file")
    variant, modes = _chosen(module, variant, file)
    arguments = (variant,) if hasattr(module, "VARIANTS") else ()
    config = _get_config(module.get_config, arguments, path)
    for mode in modes:
        config = _get_config(mode, (config,), path)
    return config, path


def _chosen(module: types.ModuleType, text: str, file: str) -> tuple[str, list[Callable]]:
    """The variant of `VARIANT,MODE...`, by default the file's first, and its modes' functions."""
    variants, modes = getattr(module, "VARIANTS", ("",)), getattr(module, "MODES", {})
    if text and not any(variants) and not modes:
        raise ConfigError(f"{file} has no variants, so {text!r} names none; use {file}")
    variant, *chosen = text.split(",")
    if variant in modes and variant not in variants:
        variant, chosen = "", [variant, *chosen]
    variant = variant or next(iter(variants))
    if variant not in variants or set(chosen) - set(modes):
        known = ", ".join(variants) + "".join(f"; each also with ,{mode}" for mode in modes)
        wrong = ",".join([variant, *chosen])
        raise ConfigError(f"unknown variant {wrong!r} of {file}; known: {known}")
    return variant, [modes[name] for name in chosen]


def line_of(path: pathlib.Path, names: Iterable[str]) -> int:
    """The line on which a file sets the last of `names` (section, key), its `get_config` else."""
    tree = ast.parse(path.read_text())
    lines = {"get_config": 1}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "get_config":
            lines["get_config"] = node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            lines.setdefault(node.value, node.lineno)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            lines.setdefault(node.attr, node.lineno)
        elif isinstance(node, ast.keyword) and node.arg:
            lines.setdefault(node.arg, node.value.lineno)
    return next(
        (lines[name] for name in reversed(list(names)) if name in lines), lines["get_config"]
    )


def _execute(path: pathlib.Path) -> types.ModuleType:
    # Recipes share sections through `from configs import common`, also with files of one's own:
    # `configs` is a namespace package, which can be in several places.
    for folder in (path.resolve().parent, SHIPPED):
        if str(folder.parent) not in sys.path:
            sys.path.append(str(folder.parent))
    loader = importlib.machinery.SourceFileLoader(f"config_{path.stem}", str(path))
    module = types.ModuleType(loader.name)
    module.__file__ = str(path)
    _guarded(path, loader.exec_module, module)
    return module


def _get_config(
    function: Callable, arguments: tuple, path: pathlib.Path
) -> ml_collections.ConfigDict:
    config = _guarded(path, function, *arguments)
    if not isinstance(config, ml_collections.ConfigDict):
        kind = "None" if config is None else f"a {type(config).__name__}"
        raise ConfigError(
            f"{path}:{line_of(path, [])}: get_config must return an ml_collections.ConfigDict, "
            f"not {kind}"
        )
    return config


def _guarded(path: pathlib.Path, function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`; what it raises becomes a ConfigError that names file and line."""
    try:
        return function(*arguments)
    except SyntaxError as error:
        where = f"{error.filename or path}:{error.lineno or 1}"
        raise ConfigError(f"{where}: {type(error).__name__}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        folder = path.resolve().parent
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if pathlib.Path(frame.filename).resolve().parent == folder
        ]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else f"{path}:1"
        text = " ".join(str(error).split())
        raise ConfigError(f"{where}: {type(error).__name__}: {text}") from None
