"""`deit-jax augmentations --config=FILE[:variant]`: what a recipe does to images, as PNG sheets."""

import argparse
import dataclasses
import functools
from typing import Any

from deit_jax import storage
from deit_jax.cli import values

DESCRIPTION = """\
Writes one sheet: rows of training images, columns the original and what the recipe's
augmentation makes of it in eight draws (mixup and CutMix included: the images of a column
are mixed with each other). With --operation it writes one more sheet for each operation that is
named, `all` for every registered one, at magnitudes drawn as the recipe's RandAugment draws
them, or DeiT's where the recipe has none.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "augmentations",
        help="a recipe's augmentation as sheets of images",
        usage="deit-jax augmentations --config=FILE[:variant] [--config.key=value ...]",
        description=DESCRIPTION,
    )
    parser.add_argument("--config", metavar="FILE[:variant]", required=True, help="the recipe")
    parser.add_argument("--output", metavar="PNG", default="augmentations.png", help="the sheet")
    parser.add_argument("--images", type=int, default=8, help="rows, an even number")
    parser.add_argument("--draws", type=int, default=8, help="columns beside the original")
    parser.add_argument("--seed", type=values.seed, default=0, help="of images and draws")
    parser.add_argument(
        "--operation", metavar="NAME", nargs="+", default=[], help="sheets of operations, or all"
    )
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax import builders, config, data, models
    from deit_jax.augment.operations import OPERATIONS
    from deit_jax.errors import ConfigError
    from deit_jax.evaluation.rows import class_names
    from deit_jax.train import augmented, schema

    if args.images < 2 or args.images % 2 or args.draws < 1:
        raise ConfigError(
            f"--images must be even and at least 2, not {args.images}, and --draws at least 1, "
            f"not {args.draws}"
        )
    path = storage.writable_file(args.output, "--output")
    for name in args.operation:
        builders.choose(OPERATIONS | {"all": None}, name, "operation")
    resolved: Any = schema.load(args.config, config.split_overrides(args.overrides))
    opened = data.open_data(**resolved.data)
    model = models.create_model(num_classes=opened.num_classes, **resolved.model)
    size = model.image_size[0]
    canvas = resolved.input.canvas
    with data.train_batches(opened.train, args.images, seed=args.seed, canvas=canvas) as batches:
        batch = next(batches)
    names = class_names(opened)
    rows = [names[label] for label in batch["label"]]

    originals = augmented.originals(batch, size)
    titles = [f"draw {i + 1}" for i in range(args.draws)]
    draws = augmented.draws(
        batch, resolved.augment, size, opened.num_classes, count=args.draws, seed=args.seed
    )
    _write(path, [originals, *draws], titles, rows, args.config)
    for name in OPERATIONS if "all" in args.operation else args.operation:
        draws, titles = _operation_draws(originals, resolved, args, name)
        sheet = path.with_stem(f"{path.stem}_{name}")
        _write(sheet, [originals, *draws], titles, rows, name)
    return 0


def _operation_draws(originals, resolved, args: argparse.Namespace, operation: str):
    """(uint8 [draws, images, size, size, 3], the arguments as titles) of one operation."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from deit_jax.augment import normalize, operations, policies, random_bits

    name = resolved.augment.auto_augment or ""
    policy = policies.rand_augment(name if name.startswith("rand") else "rand-m9-mstd0.5-inc1")
    policy = dataclasses.replace(policy, operations=(operation,))
    words = random_bits.words(jax.random.split(jax.random.key(args.seed), args.draws), 2)
    numbers = jnp.zeros(args.draws, jnp.int32)
    values = policy.arguments(numbers, policy.magnitude, words[:, 0], words[:, 1])
    options = {"names": [operation], "fill": normalize.fill_color(resolved.augment.mean)}
    apply = jax.jit(functools.partial(operations.apply_layer, shares=np.ones(1), **options))
    repeated = np.concatenate([originals] * args.draws)
    out = apply(repeated, np.repeat(numbers, args.images), np.repeat(values, args.images))
    draws = np.asarray(out).reshape(args.draws, *originals.shape)
    return draws, [f"{value:.3g}" for value in values.tolist()]


def _write(
    path: storage.Path, columns: list, titles: list[str], rows: list[str], title: str
) -> None:
    from deit_jax import figures

    titles = ["original", *titles]
    figures.save(figures.augmentations(columns, titles, rows, title=title), path)
    print(f"{path}: {len(rows)} images, {len(columns) - 1} draws")
