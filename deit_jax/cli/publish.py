"""`deit-jax publish`: a model folder for timm or transformers, with a card."""

import argparse

from deit_jax.cli import checkpoint_arguments

DESCRIPTION = """\
Writes FOLDER with model.safetensors, config.json and preprocessor_config.json, which timm
("local-dir:FOLDER") or transformers (FOLDER) and this library (--config.init=FOLDER) load, and
README.md, whose numbers are those that the run stored with the checkpoint: accuracy, epochs, data,
recipe, versions. What the checkpoint does not record is left out. To put it on the Hugging Face
hub:

    hf upload OWNER/NAME FOLDER
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "publish",
        help="a model folder with a card, for timm or transformers",
        description=DESCRIPTION,
    )
    parser.add_argument("folder", metavar="FOLDER", help="to create; its name is the card's title")
    checkpoint_arguments.add_checkpoint(parser)
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        help="timm or hf; default: timm, or hf where timm has no such model",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax.evaluation import publish

    loaded = checkpoint_arguments.load(args)
    weights = "EMA" if args.ema else "raw"
    target = publish.publish(loaded, args.folder, to=args.to, weights=weights)
    print(f"read {loaded.label}: {loaded.model}")
    if loaded.assumed:
        print(loaded.assumed)
    print(f"wrote {args.folder} for {target}: weights, settings, README.md")
    return 0
