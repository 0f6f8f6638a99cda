"""`deit-jax predict`: the most likely classes of image files, per head output."""

import argparse

from deit_jax.cli import checkpoint_arguments, values


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("predict", help="classes of image files, per head")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG, PNG, BMP or WebP files")
    checkpoint_arguments.add_checkpoint(parser)
    parser.add_argument("--top", type=values.positive, default=5, help="classes to print per head")
    parser.add_argument("--crop-ratio", type=values.crop_ratio, help="default: the checkpoint's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax import storage
    from deit_jax.evaluation import classify
    from deit_jax.evaluation.heads import HEADS

    missing = [path for path in args.images if not storage.path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}")
    loaded = checkpoint_arguments.load(args)
    names = classify.readable_names(loaded)
    probabilities_of = classify.make_classifier(loaded, crop_ratio=args.crop_ratio)
    for line in filter(None, (loaded.selection, loaded.assumed)):
        print(line)
    for path in args.images:
        print(path)
        for head, probabilities in probabilities_of(storage.path(path)).items():
            best = (-probabilities).argsort()[: args.top]
            classes = ", ".join(f"{names[k]} {probabilities[k]:.1%}" for k in best)
            print(f"  {HEADS[head].title}: {classes}")
    return 0
