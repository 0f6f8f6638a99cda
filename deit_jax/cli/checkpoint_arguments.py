"""The arguments of every command that reads weights."""

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit_jax.pretrained.checkpoint import LoadedCheckpoint


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """`--checkpoint`, and how to read it."""
    parser.add_argument(
        "--checkpoint", required=True, help="workdir, file, folder, or name of a published model"
    )
    add_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--which`, `--ema`, `--model`, `--model-kwargs` and `--config`."""
    parser.add_argument(
        "--which",
        default="latest",
        metavar="latest|best|STEP",
        help="checkpoint of a run; best is by the run's checkpoint.best_metric; default: latest",
    )
    parser.add_argument("--ema", action="store_true", help="use the EMA weights")
    parser.add_argument("--model", help="registered name, when the shapes do not determine it")
    parser.add_argument(
        "--model-kwargs",
        type=_attributes,
        default={},
        metavar="JSON",
        help='attributes that the file does not record, e.g. {"num_heads": 3}',
    )
    add_config(parser)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `pretrained.load_checkpoint`."""
    return {key: getattr(args, key) for key in ("which", "ema", "model", "model_kwargs")}


def load(args: argparse.Namespace) -> "LoadedCheckpoint":
    """The weights that the arguments of `add_checkpoint` name."""
    from deit_jax import pretrained

    return pretrained.load_checkpoint(args.checkpoint, **options(args))


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config`, which the command itself reads before it runs."""
    parser.add_argument(
        "--config",
        metavar="FILE[:variant]",
        help="config file to read first, for the models that it adds to the tables",
    )


def _attributes(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(
            f'{text[:100]!r} is not a JSON object like {{"num_heads": 3}}'
        )
    return found
