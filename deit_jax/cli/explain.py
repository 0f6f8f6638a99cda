"""`deit-jax explain --config=FILE[:variant]`, the recipe as it will run, or `explain MODEL`."""

import argparse
from typing import Any

# Training images and classes of the data sets of the paper (Table 6), for a machine without them.
PUBLISHED_SIZES = {
    ("imagenet2012", "train"): (1_281_167, 1000),
    ("cifar10", "train"): (50_000, 10),
    ("cifar100", "train"): (50_000, 100),
    ("oxford_flowers102", "train+validation"): (2_040, 102),
    ("cars196", "train"): (8_144, 196),
    ("i_naturalist2018", "train"): (437_513, 8142),
    ("i_naturalist2019", "train"): (265_240, 1010),
}

DESCRIPTION = """\
With --config: steps, rates, decay groups, augmentation, loss, cost and memory of the run
that train.py would start with the same --config arguments, and warnings on known traps.
With model names: their size, cost and published accuracy; without anything, of all models.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="a recipe as it will run, or a model's size and cost",
        usage="deit-jax explain [MODEL ...] | --config=FILE[:variant] [--config.key=value ...]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # --config.a.b is not an abbreviation of anything.
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", nargs="*", help="registered names; none: all")
    parser.add_argument("--config", metavar="FILE[:variant]", help="the recipe")
    parser.add_argument("--records", type=int, help="training images; default: those of the data")
    parser.add_argument("--classes", type=int, help="classes; default: those of the data")
    parser.add_argument("--devices", type=int, help="devices of the run; default: those here")
    parser.add_argument(
        "--images-per-second", type=float, metavar="N", help="over all devices: prints the hours"
    )
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax.errors import ConfigError

    if args.config is None:
        if args.overrides:
            raise ConfigError(f"{args.overrides[0]} needs --config=FILE[:variant]")
        from deit_jax.cli import explain_model

        return explain_model.run(args)
    if args.model:
        raise ConfigError(f"give model names or --config, not both: {', '.join(args.model)}")
    for line in explain(args):
        print(line)
    return 0


def explain(args: argparse.Namespace) -> list[str]:
    """The text, as lines."""
    import jax

    from deit_jax import config
    from deit_jax.recipe import checks, summary
    from deit_jax.recipe.recipe import make_recipe
    from deit_jax.train import schema

    resolved = schema.load(args.config, config.split_overrides(args.overrides))
    records, classes, source = _sizes(resolved, args)
    recipe: Any = make_recipe(
        resolved,
        records=records,
        num_classes=classes,
        device_count=args.devices or jax.device_count(),
    )
    lines = [summary.describe(recipe, images_per_second=args.images_per_second), source]
    warnings = checks.recipe_warnings(recipe)
    lines += ["", "warnings", *(f"  - {text}" for text in warnings)] if warnings else []
    return lines


def _sizes(config, args: argparse.Namespace) -> tuple[int, int, str]:
    """(training images, classes, a sentence on where they are from)."""
    from deit_jax import data
    from deit_jax.errors import ConfigError

    if args.records and args.classes:
        return args.records, args.classes, "\nsizes of the data as given"
    try:
        opened = data.open_data(**config.data)
    except ConfigError as error:
        published = PUBLISHED_SIZES.get((config.data.get("name"), config.data.get("train_split")))
        if published is None:
            raise ConfigError(f"{error}\nor give --records and --classes") from None
        records, classes = args.records or published[0], args.classes or published[1]
        return records, classes, "\nthe data is not prepared here: sizes as published"
    records, classes = args.records or len(opened.train), args.classes or opened.num_classes
    return records, classes, f"\nsizes of {opened.description}"
