"""`deit-jax convert`: weights between timm, Hugging Face, MMPretrain and checkpoints of ours."""

import argparse

from deit_jax.cli import checkpoint_arguments


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "convert", help="convert weights: .pth, .safetensors, Hugging Face folders, runs of ours"
    )
    parser.add_argument("source", metavar="SRC", help="file, folder, or name of a published model")
    parser.add_argument(
        "destination", metavar="DST", help="file (timm, mmpretrain) or folder (hf, jax) to create"
    )
    parser.add_argument(
        "--to",
        metavar="FORMAT",
        help="jax, timm, hf or mmpretrain; default: timm for DST called *.safetensors, else jax",
    )
    checkpoint_arguments.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax.pretrained.convert import convert

    loaded = convert(
        args.source, args.destination, to=args.to, **checkpoint_arguments.options(args)
    )
    extra = "".join(f", {key}={value}" for key, value in loaded.model_kwargs.items())
    print(f"read {loaded.label} ({loaded.format} names): {loaded.model}{extra}")
    if loaded.assumed:
        print(loaded.assumed)
    print(f"wrote {args.destination}")
    return 0
