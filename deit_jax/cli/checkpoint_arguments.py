"""The arguments of every command that reads weights."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--which`, `--ema`, `--model` and `--config`."""
    parser.add_argument(
        "--which",
        default="latest",
        metavar="latest|best|STEP",
        help="checkpoint of a run; best is by the run's checkpoint.best_metric; default: latest",
    )
    parser.add_argument("--ema", action="store_true", help="use the EMA weights")
    parser.add_argument("--model", help="registered name, when the shapes do not determine it")
    add_config(parser)


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config`, which the command itself reads before it runs."""
    parser.add_argument(
        "--config",
        metavar="FILE[:variant]",
        help="config file to read first, for the models that it adds to the tables",
    )
