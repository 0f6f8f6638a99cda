"""`deit-jax explain --config=FILE[:variant]`, the recipe as it will run, or `explain MODEL`."""

import argparse
from typing import Any

from deit_jax.cli import values

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
--device says what would be chosen on another machine, whether it fits, and hours per epoch.
With model names: their size, cost and published accuracy; without anything, of all models.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "explain",
        help="a recipe as it will run, or a model's size and cost",
        usage="deit-jax explain [MODEL ...] | --config=FILE[:variant] [--config.key=value ...]",
        description=DESCRIPTION,
    )
    parser.add_argument("model", metavar="MODEL", nargs="*", help="registered names; none: all")
    parser.add_argument("--config", metavar="FILE[:variant]", help="the recipe")
    parser.add_argument(
        "--device", help="what to run on (t4, v5e, h100, ...); default: this machine"
    )
    parser.add_argument(
        "--records", type=values.positive, help="training images; default: those of the data"
    )
    parser.add_argument(
        "--classes", type=values.positive, help="classes; default: those of the data"
    )
    parser.add_argument(
        "--devices", type=values.positive, help="devices of the run; default: those here"
    )
    parser.add_argument(
        "--images-per-second",
        type=values.positive_float,
        metavar="N",
        help="over all devices: prints the hours",
    )
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax import models
    from deit_jax.errors import ConfigError

    if args.config is None:
        if args.overrides:
            raise ConfigError(f"{args.overrides[0]} needs --config=FILE[:variant]")
        for name in args.model or models.list_models():
            print(describe_model(name))
        return 0
    if args.model:
        raise ConfigError(f"give model names or --config, not both: {', '.join(args.model)}")
    print(describe_recipe(args))
    return 0


def describe_model(name: str) -> str:
    """Size, cost and published accuracies of the registered model `name`.

    Raises:
      ConfigError: it is not registered.
    """
    from deit_jax import models
    from deit_jax.pretrained import hub

    model = models.create_model(name)
    parameters, macs = model.count()
    size = "x".join(map(str, model.image_size))
    lines = [
        f"{name}: {parameters:,} parameters, {macs / 1e9:.3f} G multiply-accumulates at {size}"
    ]
    for tag, entry in hub.checkpoints_of(name).items():
        digest = f"SHA-256 {entry.sha256}..." if entry.sha256 else "no published digest"
        top5 = f", top-5 {entry.top5} %" if entry.top5 else ""
        flops = f"{entry.gflops} GFLOPs, " if entry.gflops else ""
        lines.append(
            f"  {tag}: top-1 {entry.top1} %{top5} on ImageNet (crop ratio {entry.crop_ratio}), "
            f"{flops}{entry.url} ({digest})"
        )
    return "\n".join(lines if len(lines) > 1 else [*lines, "  no checkpoint of DeiT's authors"])


def describe_recipe(args: argparse.Namespace) -> str:
    """The recipe of `args.config`, where its sizes are from, and warnings on known traps."""
    import jax

    from deit_jax import config
    from deit_jax.errors import Problems
    from deit_jax.recipe import checks, few_photos, summary
    from deit_jax.recipe.devices import find_device
    from deit_jax.recipe.recipe import make_recipe
    from deit_jax.train import experiment, schema

    device = find_device(args.device) if args.device else None
    resolved = schema.load(args.config, config.split_overrides(args.overrides))
    records, evaluation, classes, source = _sizes(resolved, args)
    count = args.devices or (1 if device else jax.device_count())
    fit = few_photos.fit(resolved, train=records, evaluation=evaluation, device_count=count)
    records *= fit.times
    problems = Problems(fit.config)
    sizes = {"records": records, "num_classes": classes, "device_count": count}
    recipe: Any = make_recipe(fit.config, **sizes, device=device, problems=problems)
    experiment.check_sections(fit.config, recipe, problems)
    problems.raise_any()
    lines = [summary.describe(recipe, images_per_second=args.images_per_second), source]
    lines += [f"note: {text}" for text in fit.notes]
    warnings = checks.recipe_warnings(recipe)
    lines += ["", "warnings", *(f"  - {text}" for text in warnings)] if warnings else []
    return "\n".join(lines)


def _sizes(config, args: argparse.Namespace) -> tuple[int, int | None, int, str]:
    """(images for training and, if known, evaluation; classes; where these are from)."""
    from deit_jax import data
    from deit_jax.errors import ConfigError

    if args.records and args.classes:
        return args.records, None, args.classes, "\nsizes of the data as given"
    evaluation = None
    data.check_window(config.data.get("window_shards"))
    try:
        opened = data.open_data(**config.data)
    except ConfigError as error:
        published = PUBLISHED_SIZES.get((config.data.get("name"), config.data.get("train_split")))
        if published is None:
            raise ConfigError(f"{error}\nor give --records and --classes") from None
        (records, classes), source = published, "the data is not prepared here: sizes as published"
    else:
        records, classes = len(opened.train), opened.num_classes
        evaluation = len(opened.eval)
        notes = "".join(f"\nnote: {text}" for text in opened.notes)
        source = f"sizes of {opened.description}{notes}"
    return args.records or records, evaluation, args.classes or classes, f"\n{source}"
