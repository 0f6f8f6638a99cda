"""`deit-jax convert`: weights between torch, timm, Hugging Face and checkpoints of ours."""

import argparse
import json


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "convert", help="convert weights: .pth, .safetensors, Hugging Face folders, runs of ours"
    )
    parser.add_argument("source", metavar="SRC", help="file, folder, or name of a published model")
    parser.add_argument(
        "destination", metavar="DST", help="file (timm) or folder (hf, jax) to make"
    )
    parser.add_argument("--to", choices=("jax", "timm", "hf"), help="default: by the name of DST")
    parser.add_argument("--model", help="registered name, when the shapes do not tell it")
    parser.add_argument(
        "--model-kwargs",
        type=json.loads,
        default={},
        metavar="JSON",
        help='what else they do not tell, e.g. {"num_heads": 3}',
    )
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax.pretrained.convert import convert

    loaded = convert(
        args.source,
        args.destination,
        to=args.to,
        model=args.model,
        model_kwargs=args.model_kwargs,
        ema=args.ema,
    )
    extra = "".join(f", {key}={value}" for key, value in loaded.model_kwargs.items())
    print(f"read {loaded.source} ({loaded.format} names): {loaded.model}{extra}")
    print(f"wrote {args.destination}")
    return 0
