"""`deit-jax replay --dump=DIR`: repeats the step that stopped a run with a non-finite loss."""

import argparse

from deit_jax.cli import checkpoint_arguments

DESCRIPTION = """\
A run that stops at a non-finite loss or gradient writes the state before that step to
WORKDIR/nonfinite-step-N. This command repeats the step from it, with the run's own config,
data and teacher, and prints its loss and gradient norm, and which parameters and gradients
are not finite. --config.key=value tries another setting. The repetition is bit-identical on
the same kind and number of devices.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "replay",
        help="repeat the step that stopped a run and name its non-finite gradients",
        usage="deit-jax replay --dump=WORKDIR/nonfinite-step-N [--config.key=value ...]",
        description=DESCRIPTION,
    )
    parser.add_argument("--dump", required=True, metavar="DIR", help="written by the run")
    checkpoint_arguments.add_config(parser)
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax import config, storage
    from deit_jax.train import replay

    folder = storage.path(args.dump)
    _, lines = replay.replay(folder, config.split_overrides(args.overrides))
    print(*lines, sep="\n")
    return 0
