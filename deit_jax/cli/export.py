"""`deit-jax export`: a model as one file for jax alone, or for ONNX."""

import argparse

from deit_jax.cli import checkpoint_arguments, values

DESCRIPTION = """\
Writes FILE with the weights inside and, beside it, FILE.json with the preparation of images, the
outputs and the class names. FILE.jax needs jax alone, on CPU, CUDA and TPU:

    import jax.export
    model = jax.export.deserialize(bytearray(open("FILE.jax", "rb").read()))
    model.call(image)["probabilities"]      # image: f32 [any number, height, width, 3], prepared

FILE.onnx takes images as [any number, 3, height, width]; writing it needs pip install
'deit_jax[onnx]'. Outputs of both: logits, probabilities and, of a distilled model, dist_logits.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "export", help="a model as one file: jax.export, ONNX", description=DESCRIPTION
    )
    parser.add_argument("file", metavar="FILE", help="FILE.jax or FILE.onnx to create")
    checkpoint_arguments.add_checkpoint(parser)
    parser.add_argument("--to", metavar="FORMAT", help="jax or onnx; default: by FILE's suffix")
    parser.add_argument(
        "--image-size", type=values.positive, help="side in pixels; default: the checkpoint's"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax import storage
    from deit_jax.evaluation import export

    loaded = checkpoint_arguments.load(args)
    found = export.export(loaded, args.file, to=args.to, image_size=args.image_size)
    path, size = storage.path(args.file), found["input"]["shape"]
    print(f"read {loaded.label}: {found['model']}, {found['parameters']:,} parameters")
    if loaded.assumed:
        print(loaded.assumed)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB, {found['format']})")
    print(f"wrote {export.description_path(path)}: preparation, outputs, class names")
    print(f"image: f32 [{', '.join(map(str, size))}]; outputs: {', '.join(found['outputs'])}")
    return 0
