"""`deit-jax predict`: the most likely classes of image files, per head."""

import argparse
import math
import pathlib


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("predict", help="classes of image files, per head")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="JPEG, PNG, BMP or WebP files")
    parser.add_argument(
        "--checkpoint", required=True, help="file, folder, workdir, or name of a published model"
    )
    parser.add_argument("--model", help="registered name, when the shapes do not tell it")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights")
    parser.add_argument("--top", type=int, default=5, help="classes to print per head")
    parser.add_argument("--crop-ratio", type=float, help="default: the checkpoint's")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax import pretrained

    missing = [path for path in args.images if not pathlib.Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"no such file: {', '.join(missing)}")
    loaded = pretrained.load_checkpoint(args.checkpoint, ema=args.ema, model=args.model)
    names = readable_names(loaded)
    classify = make_classifier(loaded, crop_ratio=args.crop_ratio)
    for path in args.images:
        print(path)
        for head, probabilities in classify(pathlib.Path(path)).items():
            best = (-probabilities).argsort()[: args.top]
            found = ", ".join(f"{names[k]} {probabilities[k]:.1%}" for k in best)
            print(f"  {head}: {found}")
    return 0


def readable_names(loaded) -> list[str]:
    """K names: the checkpoint's own, synsets made readable; numbers where it tells none.

    1,000 classes without names are taken to be ImageNet-1k in its usual order.
    """
    from deit_jax.data import imagenet_classes

    if loaded.class_names:
        return [imagenet_classes.class_name(name) for name in loaded.class_names]
    if loaded.num_classes == len(imagenet_classes.class_names()):
        return list(imagenet_classes.class_names())
    return [f"class {number}" for number in range(loaded.num_classes)]


def make_classifier(loaded, *, crop_ratio: float | None = None):
    """`classify(path) -> {head: probabilities f32 [K]}` with the evaluation's preparation.

    Heads: `classes`; for distilled models `class token`, `distillation token` and `both`
    (softmax of the mean of the two logits, what the official evaluation reports).
    """
    import jax
    import numpy as np

    from deit_jax import augment, models
    from deit_jax.data.decode import CorruptImage, decode_image
    from deit_jax.errors import ConfigError

    model = loaded.create_model()
    if model.image_size[0] != model.image_size[1]:
        raise ConfigError(f"only square models are evaluated, not {model.image_size}")
    transform = augment.make_eval_transform(
        image_size=model.image_size[0],
        crop_ratio=crop_ratio or loaded.image["crop_ratio"],
        mean=loaded.mean,
        std=loaded.std,
    )
    forward = jax.jit(lambda variables, batch: models.apply(model, variables, transform(batch)))
    variables = jax.device_put(loaded.variables)

    def classify(path: pathlib.Path) -> dict[str, np.ndarray]:
        try:
            pixels = decode_image(path.read_bytes())
        except CorruptImage as error:
            raise ConfigError(f"{path}: {error}") from None
        # Whole multiples of 256, so that photos of like size share one compiled program.
        side = 256 * math.ceil(max(pixels.shape[:2]) / 256)
        canvas = np.zeros((1, side, side, 3), np.uint8)
        canvas[0, : pixels.shape[0], : pixels.shape[1]] = pixels
        size = np.array([pixels.shape[:2]], np.int32)
        output = jax.device_get(forward(variables, {"canvas": canvas, "size": size}))
        heads = {"classes": output.logits[0]}
        if output.dist_logits is not None:
            both = (output.logits[0] + output.dist_logits[0]) / 2
            heads = {
                "class token": output.logits[0],
                "distillation token": output.dist_logits[0],
                "both": both,
            }
        return {head: np.asarray(jax.nn.softmax(logits)) for head, logits in heads.items()}

    return classify
