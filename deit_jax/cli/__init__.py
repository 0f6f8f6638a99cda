"""The `deit-jax` command: train, evaluate, convert, explain and more, one module per subcommand.

A new subcommand is a module with `add_parser` and `run`, and a line in `COMMANDS`. The
modules import what they need inside `run`, so that `--help` answers at once.
"""

import argparse
import functools
import sys
from typing import Any

from deit_jax import errors
from deit_jax.cli import (
    attention,
    augmentations,
    benchmark,
    compare,
    convert,
    data,
    evaluate,
    explain,
    export,
    features,
    labels,
    predict,
    publish,
    replay,
    train,
)

COMMANDS = (
    train,
    evaluate,
    predict,
    attention,
    publish,
    convert,
    explain,
    benchmark,
    export,
    features,
    augmentations,
    data,
    labels,
    compare,
    replay,
)


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; 2 after an error that the user can fix, without a traceback.

    A run that was stopped says so and returns its own exit status.
    """
    from deit_jax import config_file

    description = "Train models; inspect data and recipes; evaluate, use and convert weights."
    parser = errors.ArgumentParser(prog="deit-jax", description=description)
    # --config.a.b is not an abbreviation of anything.
    options = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    of_command: Any = functools.partial(errors.ArgumentParser, **options)
    subparsers = parser.add_subparsers(dest="command", required=True, parser_class=of_command)
    for command in COMMANDS:
        command.add_parser(subparsers)
    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and not getattr(args, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    try:
        reads_config = getattr(args, "reads_config", False)
        if getattr(args, "config", None) is not None and not reads_config:
            # What the file adds to the tables must be there before anything is read.
            config_file.read(args.config)
        return args.run(args)
    except (errors.ConfigError, FileNotFoundError, PermissionError, TimeoutError) as error:
        return _refuse(args, error)
    except errors.RunStopped as error:
        print(f"stopped: {errors.screen(error)}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if args.command == "train":  # in the middle of a run: not what the user wrote
            raise
        return _refuse(args, error)


def _refuse(args: argparse.Namespace, error: Exception) -> int:
    who = getattr(args, "prefix", f"deit-jax {args.command}")
    print(f"{who}: {errors.screen(error)}", file=sys.stderr)
    return 2
