"""Trains, distils or fine-tunes a model as its config says: `deit-jax train`, from a checkout.

python train.py --config=FILE[:variant] --workdir=DIR [--config.section.key=value ...]
"""

import sys

from deit_jax import cli
from deit_jax.cli.train import parse

__all__ = ["main", "parse"]


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 1 failed, 2 could not start, 75 or 130 saved and stopped by a signal."""
    return cli.main(["train", *argv])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
