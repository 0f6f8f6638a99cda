"""`deit-jax data`: what is in a data set, and whether every image of it can be decoded."""

import argparse
from typing import Any

from deit_jax.cli import values

_CHUNK = 64
# Classes whose sizes are printed, of many.
_MOST_CLASSES = 20
# Of each class in a figure.
_PICTURES = 8
# Option of some sources -> its type and what it is.
_SOURCE_OPTIONS = {
    "name": (str, "of a tfds set, such as imagenet2012"),
    "data_dir": (str, "where tfds has prepared it"),
    "path": (str, "of photos (a folder or .zip), of shards, or of an .npz file"),
    "train_split": (str, "default: train"),
    "eval_split": (str, "default: validation, val or test"),
    "val_share": (float, "of photos without splits, the share for validation (default 0.2)"),
    "split_seed": (int, "another one splits them differently"),
    "num_classes": (int, "of tar and parquet files, instead of what their labels need"),
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "data", help="inspect a data set and check it before training", description=__doc__
    )
    parser.add_argument("--source", default="tfds", help="tfds (default), folder, tar, ...")
    for option, (kind, text) in _SOURCE_OPTIONS.items():
        parser.add_argument(f"--{option}", type=kind, help=text)
    parser.add_argument(
        "--canvas", type=values.positive, default=512, help="side that images should fit"
    )
    parser.add_argument("--decode", action="store_true", help="decode every image")
    parser.add_argument("--png", help="draw photos and numbers of each class into this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the report; 1 when an image cannot be decoded."""
    from deit_jax import data

    opened = data.open_data(**_options(args))
    print(opened.description)
    for line in (*(f"note: {note}" for note in opened.notes), *_classes(opened)):
        print(line)
    damaged = []
    if args.decode:
        for split, source in (("train", opened.train), ("eval", opened.eval)):
            summary, wrong = check(source, canvas=args.canvas)
            print(f"{split}: {summary}", *wrong, sep="\n")
            damaged += wrong
    if args.png:
        print(f"photos of each class: {draw(opened, args.png, notes=[*opened.notes, *damaged])}")
    return 1 if damaged else 0


def _classes(opened) -> list[str]:
    """A line on each class, with its images where they are known without reading them all."""
    from deit_jax.errors import printable

    names = _names(opened)
    if (counts := _counts(opened)) is None:
        shown = ", ".join(map(printable, names[:5]))
        return [f"classes: {shown}" + ", ..." * (len(names) > 5)]
    rows = zip(names, *counts.T.tolist(), strict=True)
    lines = [f"  {printable(n, limit=40):<24}{a:>9,}{b:>9,}" for n, a, b in rows]
    more = [f"  ... and {len(lines) - _MOST_CLASSES:,} more classes"]
    header = f"  {'class':<24}{'train':>9}{'eval':>9}"
    return [header, *lines[:_MOST_CLASSES], *more[: len(lines) > _MOST_CLASSES]]


def _names(opened) -> list[str]:
    return list(opened.class_names or map(str, range(opened.num_classes)))


def _counts(opened):
    """Images of each class, int [K, 2], for training and evaluation; None if it is not known."""
    import numpy as np

    if opened.train.labels is None or opened.eval.labels is None:
        return None
    splits = (opened.train.labels, opened.eval.labels)
    size = opened.num_classes
    counts = [np.bincount(labels[labels >= 0], minlength=size)[:size] for labels in splits]
    return np.stack(counts, axis=1)


def draw(opened, png: str, *, notes: list[str]):
    """Draws the classes of a data set, or the first of many, and returns the file's path.

    Raises:
      ConfigError: the labels are known only from reading all images.
    """
    import numpy as np

    from deit_jax import figures
    from deit_jax.errors import ConfigError

    if (counts := _counts(opened)) is None:
        raise ConfigError("--png needs all labels at once, and this source reads them one by one")
    names = _names(opened)
    if len(names) > _MOST_CLASSES:
        notes = [f"the first {_MOST_CLASSES} of {len(names):,} classes", *notes]
    pictures = []
    for number in range(min(len(names), _MOST_CLASSES)):
        of_class = np.flatnonzero(opened.train.labels == number)
        spread = of_class[:: max(1, len(of_class) // _PICTURES)][:_PICTURES]
        pictures.append(_decoded(opened.train, spread))
    most = slice(_MOST_CLASSES)
    text = [note.strip() for note in notes]
    drawn = figures.photos(
        pictures, names[most], counts[most], notes=text, title=opened.description.split(": ")[0]
    )
    return figures.save(drawn, png)


def _decoded(source, indices) -> list:
    """The pictures of some records, turned as training turns them; without the damaged ones."""
    from deit_jax import data

    pictures = []
    for record in source.get(indices)[0]:
        try:
            turned = {"exif_orientation": source.exif_orientation}
            pictures.append(data.decode_image(record, **turned))
        except data.CorruptImage:
            continue
    return pictures


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `data.open_data` that are set; all must be those of the source."""
    from deit_jax import builders, data
    from deit_jax.errors import ConfigError

    given = {key: getattr(args, key) for key in ("source", *_SOURCE_OPTIONS)}
    given = {key: value for key, value in given.items() if value is not None}
    known = builders.options(data.open_data, given)
    wrong = [f"--{key}" for key in given if key not in known]
    if wrong:
        takes = ", ".join(f"--{key}" for key in _SOURCE_OPTIONS if key in known)
        raise ConfigError(
            f"source {args.source!r} does not take {', '.join(wrong)}; it takes: {takes or 'none'}"
        )
    return given


def check(source, *, canvas: int) -> tuple[str, list[str]]:
    """Decodes every record of a source: a summary, and a line per record that is damaged."""
    import concurrent.futures

    import numpy as np

    from deit_jax import data
    from deit_jax.data.batches import usable_cores

    def decode(start: int):
        indices = np.arange(start, min(start + _CHUNK, len(source)))
        sides, wrong = [], []
        for index, record in zip(indices, source.get(indices)[0], strict=True):
            try:
                sides.append(max(data.decode_image(record).shape[:2]))
            except data.CorruptImage as error:
                wrong.append(f"  cannot decode {source.record_name(index)}: {error}")
        return sides, wrong

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as pool:
        sides, wrong = zip(*pool.map(decode, range(0, len(source), _CHUNK)), strict=True)
    longest = np.concatenate(sides)
    summary = f"{len(longest)} of {len(source)} images decoded"
    if len(longest):
        summary += (
            f"; longer side {longest.min()} to {longest.max()} pixels, median "
            f"{int(np.median(longest))}; {np.mean(longest > canvas):.1%} exceed {canvas}"
        )
    return summary, sum(wrong, [])
