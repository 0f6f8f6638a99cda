"""`deit-jax replay --dump=DIR`: repeats a step whose loss or gradient was not finite."""

import argparse
import pathlib

DESCRIPTION = """\
A run that meets a loss or gradient that is not finite writes the state before that step to
WORKDIR/nonfinite-step-N. This repeats the step from it, with the run's own config, data and
teacher: prints its loss and gradient norm, and which parameters and gradients are not
finite. With --config.key=value it shows whether another setting would have passed. The same
bits need the same kind and number of devices.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="repeats a step that was not finite and names the gradients",
        usage="deit-jax replay --dump=WORKDIR/nonfinite-step-N [--config.key=value ...]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--dump", required=True, metavar="DIR", help="written by the run")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax import config
    from deit_jax.train import replay

    folder = pathlib.Path(args.dump)
    for line in replay.describe(replay.replay(folder, config.split_overrides(args.overrides))):
        print(line)
    return 0
