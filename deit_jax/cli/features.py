"""`deit-jax features`: embeddings of all photos of a folder, as an .npz file."""

import argparse

from deit_jax.cli import checkpoint_arguments, values

DESCRIPTION = """\
Writes OUT.npz with f32 [N, D] arrays, after the model's last normalization: class_token,
distillation_token (of distilled models) and patch_mean, the mean of the patches (of a RegNet: of
all positions, the only one); names [N], the files relative to PHOTOS; labels [N] and class_names
where PHOTOS has class folders (-1: in none); corrupt, the files that are left out, as they could
not be decoded.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "features", help="embeddings of a folder of photos, as .npz", description=DESCRIPTION
    )
    parser.add_argument(
        "photos", metavar="PHOTOS", help="folder or .zip of JPEG, PNG, BMP, WebP files"
    )
    parser.add_argument("file", metavar="OUT.npz", help="file to write")
    checkpoint_arguments.add_checkpoint(parser)
    parser.add_argument(
        "--batch-size", type=values.positive, default=64, help="photos at a time; default: 64"
    )
    parser.add_argument("--crop-ratio", type=values.crop_ratio, help="default: the checkpoint's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax import storage
    from deit_jax.data import all_photos
    from deit_jax.errors import ConfigError, printable
    from deit_jax.evaluation import features

    path = storage.path(args.file)
    if path.suffix != ".npz":
        raise ConfigError(f"{path}: the file must be called *.npz")
    photos = all_photos.open_all_photos(args.photos)
    loaded = checkpoint_arguments.load(args)
    found = features.compute(loaded, photos, batch_size=args.batch_size, crop_ratio=args.crop_ratio)
    features.write(path, found, photos)
    print(f"read {loaded.label}: {loaded.model}")
    for line in filter(None, (loaded.assumed, photos.ignored)):
        print(line)
    for name in found.corrupt:
        print(f"left out, cannot be decoded: {printable(name)}")
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in found.arrays.items())
    classes = f"; {len(photos.class_names)} classes" if photos.class_names else ""
    print(f"wrote {path}: {shapes}{classes}")
    return 0
