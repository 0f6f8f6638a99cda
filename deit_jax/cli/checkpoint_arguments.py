"""The arguments of every command that reads weights."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--which`, `--ema` and `--model`."""
    parser.add_argument(
        "--which",
        default="latest",
        metavar="latest|best|STEP",
        help="checkpoint of a run; best is by the run's checkpoint.best_metric; default: latest",
    )
    parser.add_argument("--ema", action="store_true", help="use the EMA weights")
    parser.add_argument("--model", help="registered name, when the shapes do not determine it")
