"""`deit-jax attention`: what the tokens of a transformer look at in photos, as one sheet each."""

import argparse
from typing import Any

from deit_jax.cli import checkpoint_arguments, values

DESCRIPTION = """\
Writes one sheet for each photo. For the chosen blocks: the attention of the class token and of
the distillation token to the patches, each the mean over the heads; the mean of the two; and
attention rollout up to that block (Abnar and Zuidema 2020: the mean over the heads, half of it
and half the identity for the residual connection, multiplied from the first block on). Below, the
single heads of the last chosen block.
"""
# Blocks on a sheet where none are chosen.
_BLOCKS = 4


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "attention", help="attention maps and rollout over photos", description=DESCRIPTION
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG, PNG, BMP or WebP files")
    checkpoint_arguments.add_checkpoint(parser)
    parser.add_argument(
        "--blocks",
        metavar="N,...|all",
        help="counted from 1, or from the last: -1; default: four, the last among them",
    )
    parser.add_argument("--output", metavar="DIR", default="attention", help="folder of the sheets")
    parser.add_argument(
        "--image-size", type=values.positive, help="side in pixels; default: the checkpoint's"
    )
    parser.add_argument("--crop-ratio", type=values.crop_ratio, help="default: the checkpoint's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax import figures, storage
    from deit_jax.evaluation import attention, classify

    missing = [path for path in args.images if not storage.path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}")
    folder = storage.writable(args.output, "--output")
    loaded = checkpoint_arguments.load(args)
    sizes = {"image_size": args.image_size, "crop_ratio": args.crop_ratio}
    maps_of = attention.make_attention(loaded, **sizes)
    blocks = _blocks(args.blocks, loaded.create_model().depth)
    names = classify.readable_names(loaded)
    for line in filter(None, (loaded.selection, loaded.assumed)):
        print(line)
    for image, sheet in zip(args.images, _sheet_names(args.images), strict=True):
        maps = maps_of(storage.path(image))
        drawn = _draw(maps, blocks, title=storage.path(image).name, subtitle=_said(maps, names))
        print(f"{image}: {figures.save(drawn, folder / sheet)}", flush=True)
    return 0


def _blocks(text: str | None, depth: int) -> list[int]:
    """Numbers of blocks from 0, ascending."""
    from deit_jax.errors import ConfigError

    if text == "all":
        return list(range(depth))
    if text is None:
        return sorted({depth * (i + 1) // _BLOCKS - 1 for i in range(_BLOCKS)} - {-1})
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if any(not 1 <= abs(number) <= depth for number in numbers):
        raise ConfigError(
            f"--blocks takes numbers from 1 to {depth}, from -1 (the last) to -{depth}, or all, "
            f"not {text!r}"
        )
    return sorted({number - 1 if number > 0 else depth + number for number in numbers})


def _sheet_names(images: list[str]) -> list[str]:
    """`photo.png`; with a number where photos in several folders have one name."""
    from deit_jax import storage

    found: list[str] = []
    for image in images:
        stem = storage.path(image).stem
        names = (f"{stem}{suffix}.png" for suffix in ("", *(f"-{n}" for n in range(2, 10**6))))
        found.append(next(name for name in names if name not in found))
    return found


def _said(maps: Any, names: list[str]) -> str:
    """What each head takes the photo for."""
    from deit_jax.evaluation.heads import HEADS
    from deit_jax.figures import style

    names = style.drawable(names)
    heads = [head for head in ("class", "dist") if head in maps.probabilities]
    best = {head: int(maps.probabilities[head].argmax()) for head in heads}
    return "; ".join(
        f"{HEADS[head].title}: {names[k]} {maps.probabilities[head][k]:.1%}"
        for head, k in best.items()
    )


def _draw(maps: Any, blocks: list[int], *, title: str, subtitle: str) -> Any:
    import numpy as np

    from deit_jax import figures

    tokens = ["class token", "distillation token"][: maps.rollout.shape[1]]
    mean, rollout = maps.mean[blocks], maps.rollout[blocks]
    if len(tokens) == 1:
        columns = ["class token", "rollout"]
        shown = np.concatenate([mean, rollout], axis=1)
    else:
        columns = [*tokens, "mean of both", "rollout, class", "rollout, distillation"]
        both = mean.mean(axis=1, keepdims=True)
        shown = np.concatenate([mean, both, rollout], axis=1)
    return figures.attention(
        maps.photo,
        shown,
        [f"block {block + 1}" for block in blocks],
        columns,
        heads=maps.heads[blocks[-1]].swapaxes(0, 1),
        head_rows=[token.removesuffix(" token") for token in tokens],
        head_title=f"Single heads of block {blocks[-1] + 1}",
        title=title,
        subtitle=subtitle,
    )
