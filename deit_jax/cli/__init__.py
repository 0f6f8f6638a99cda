"""The `deit-jax` command: one module per subcommand, each with `add_parser` and `run`."""

import argparse
import importlib
import sys

_COMMANDS = (
    "augmentations",
    "compare",
    "convert",
    "data",
    "evaluate",
    "explain",
    "predict",
    "replay",
)


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; 2 after an error that the user can act on, told in one line."""
    from deit_jax.errors import ConfigError

    parser = argparse.ArgumentParser(prog="deit-jax", description=__doc__.split(":")[0])
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        importlib.import_module(f"deit_jax.cli.{name}").add_parser(subparsers)
    args, args.overrides = parser.parse_known_args(argv)
    if args.overrides and not getattr(args, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(args.overrides)}")
    try:
        return args.run(args)
    except (ConfigError, FileNotFoundError) as error:
        print(f"deit-jax {args.command}: {error}", file=sys.stderr)
        return 2
