"""`deit-jax predict`: the most likely classes of image files, per head output."""

import argparse

from deit_jax.cli import checkpoint_arguments


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("predict", help="classes of image files, per head")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG, PNG, BMP or WebP files")
    parser.add_argument(
        "--checkpoint", required=True, help="file, folder, workdir, or name of a published model"
    )
    checkpoint_arguments.add_arguments(parser)
    parser.add_argument("--top", type=int, default=5, help="classes to print per head")
    parser.add_argument("--crop-ratio", type=float, help="default: the checkpoint's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax import pretrained, storage
    from deit_jax.errors import ConfigError
    from deit_jax.evaluation import classify
    from deit_jax.evaluation.heads import HEADS

    if args.top < 1:
        raise ConfigError(f"--top must be at least 1, not {args.top}")
    if args.crop_ratio is not None and not 0.1 <= args.crop_ratio <= 1:
        raise ConfigError(f"--crop-ratio must be from 0.1 to 1, not {args.crop_ratio}")
    missing = [path for path in args.images if not storage.path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}")
    loaded = pretrained.load_checkpoint(args.checkpoint, **checkpoint_arguments.options(args))
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
