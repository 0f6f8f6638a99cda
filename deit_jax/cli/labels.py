"""`deit-jax labels`: the teacher's labels for every image of a run, computed once and stored."""

import argparse

from deit_jax.cli import train

DESCRIPTION = """\
Computes what the teacher of a recipe answers to the images of a run, without a student, and
stores it: 2 bytes per image for hard labels, or the largest logits (--config.teacher.label_k).
Any run with the same images (data, seed, batch, repeats, augmentation, image size) then trains
with --config.teacher.labels=DIR and needs no teacher, whatever its student, loss, optimizer and
number of devices. Epochs that are there are left out: rerun the command after a kill, start it
on several machines with different --epochs, or give one call several processes as to train.py.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "labels",
        help="compute and store the teacher's labels of a run",
        usage="deit-jax labels --config=FILE[:variant] --output=DIR [--epochs=first:last] "
        "[--config.key=value ...]",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE[:variant]", help="the recipe")
    add("--output", required=True, metavar="DIR", help="folder of the labels")
    add("--epochs", metavar="first:last", help="counted from 0, both included; default: the run's")
    train.add_joining(parser)
    parser.set_defaults(run=run, takes_overrides=True, reads_config=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax import config, distributed

    overrides = [*config.split_overrides(args.overrides), f"teacher.record={args.output}"]
    distributed.keep_freed_arrays()
    with distributed.join(**{name: getattr(args, name) for name in train.JOINING}):
        # After the processes are connected: these imports initialize the devices.
        from deit_jax.train import labels, schema

        epochs = labels.parse_epochs(args.epochs) if args.epochs else None
        labels.make_labels(schema.load(args.config, overrides), epochs=epochs)
    return 0
