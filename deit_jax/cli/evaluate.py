"""`deit-jax evaluate`: accuracy of a checkpoint on its own data, ImageNet, ImageNet V2, ReaL."""

import argparse
import json
from typing import Any

from deit_jax import storage
from deit_jax.cli import checkpoint_arguments, values

# Sections of a run's or a given config that evaluation uses.
_SECTIONS = ("data", "eval", "input")

DESCRIPTION = """\
Sets: val, the evaluation split of the checkpoint's own run, or of --config, or of
--config.data.*, else ImageNet's validation images; v2, ImageNet V2 matched frequency; real,
ImageNet's validation images with the reassessed labels. All are read as tfds has prepared
them (--config.data.data_dir=DIR). Prints the accuracy of both heads of a distilled model, of
the mean of their logits (the official evaluation) and of the sum of their softmaxes (the
paper's text), for the raw weights and, where a run has it, the EMA.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="accuracy of a checkpoint: ImageNet, V2, ReaL, or its own data",
        usage="deit-jax evaluate --checkpoint=PATH|NAME [--data=val,v2,real] [options] "
        "[--config.key=value ...]",
        description=DESCRIPTION,
    )
    checkpoint_arguments.add_checkpoint(parser)
    parser.add_argument(
        "--data", action="append", metavar="SET,...", help="val, v2, real; default: val"
    )
    parser.add_argument(
        "--image-size", type=values.positive, help="side in pixels; default: the checkpoint's"
    )
    parser.add_argument("--crop-ratio", type=values.crop_ratio, help="default: the checkpoint's")
    parser.add_argument("--dtype", default="float32", help="to compute in; default: float32")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    parser.add_argument("--confusion", metavar="FILE.csv", help="of the first set")
    parser.add_argument("--per-class", metavar="FILE.csv", help="of the first set")
    parser.add_argument(
        "--figures",
        metavar="DIR",
        help="confusion matrix and most wrong pictures of the first set, as PNG",
    )
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax import distributed

    # Before the imports that initialize the devices.
    distributed.keep_freed_arrays()
    from deit_jax.evaluation import evaluator, results

    for flag in ("json", "confusion", "per_class"):
        if file := getattr(args, flag):
            storage.writable_file(file, f"--{flag.replace('_', '-')}")
    if args.figures:
        storage.writable(args.figures, "--figures")
    candidates = evaluator.load_candidates(args.checkpoint, **checkpoint_arguments.options(args))
    loaded = next(iter(candidates.values()))
    config = _config(args, loaded)
    sets = _open_sets(args, config, loaded)
    evaluate = _evaluator(args, config, loaded)
    found: dict[str, Any] = {}
    print(evaluate.description, flush=True)
    if loaded.assumed:
        print(loaded.assumed, flush=True)
    for one in sets:
        print(one.data.description, flush=True)
        predictions = {
            weights: evaluate.predict(candidate, one) for weights, candidate in candidates.items()
        }
        found[one.name] = {w: evaluator.score(p, one) for w, p in predictions.items()}
        print(results.accuracy_table(one.name, found[one.name]), flush=True)
        for weights, predicted in predictions.items():
            if "dist" in predicted.choices:
                print(evaluator.agreement_table(weights, predicted, one), flush=True)
        if one is sets[0]:
            _write_csv(args, one, next(iter(predictions.values())))
            if args.figures:
                _draw(args, one, predictions)
    if args.json:
        path = storage.path(args.json)
        storage.write(path, json.dumps(evaluate.facts | {"results": found}, indent=2) + "\n")
        print(f"wrote {path}")
    return 0


def _config(args: argparse.Namespace, loaded: Any) -> Any:
    """Data and evaluation: of --config, of the run that made the checkpoint, or ImageNet's."""
    import ml_collections

    from deit_jax import config
    from deit_jax.train import schema

    overrides = config.split_overrides(args.overrides)
    if args.crop_ratio is not None:
        overrides.append(f"eval.crop_ratio={args.crop_ratio}")
    if args.config:
        return schema.load(args.config, overrides)
    stored = loaded.metadata.get("config", {})
    base = {key: dict(stored[key]) for key in _SECTIONS if key in stored}
    if not stored:
        base["data"] = {"name": "imagenet2012", "train_split": "train", "eval_split": "validation"}
    base.setdefault("eval", {})["crop_ratio"] = loaded.image["crop_ratio"]
    base.setdefault("input", {}).setdefault("canvas", 512)
    base["model"] = {"name": loaded.model}
    return schema.resolve(ml_collections.ConfigDict(base), overrides)


def _open_sets(args: argparse.Namespace, config: Any, loaded: Any) -> list[Any]:
    """All sets, before the first takes its time."""
    from deit_jax.errors import ConfigError
    from deit_jax.evaluation import datasets

    names = list(dict.fromkeys(n for text in args.data or ["val"] for n in text.split(",")))
    if (args.confusion or args.per_class or args.figures) and names[0] in datasets.LABEL_SETS:
        raise ConfigError(f"confusions need one label per image: put another set before {names[0]}")
    # The order of the classes in files of others is ImageNet's, under any names.
    class_names = loaded.class_names if loaded.format == "deit_jax" else None
    return [
        datasets.open_set(
            name, config.data, num_classes=loaded.num_classes, class_names=class_names
        )
        for name in names
    ]


def _evaluator(args: argparse.Namespace, config: Any, loaded: Any) -> Any:
    from deit_jax.errors import Problems
    from deit_jax.evaluation import evaluator
    from deit_jax.evaluation.evaluate import Evaluation

    sizes = {"image_size": args.image_size} if args.image_size else {}
    model = loaded.create_model(dtype=args.dtype, **sizes)
    problems = Problems(config)
    with problems.section("eval"):
        evaluation = Evaluation(evaluator.square_side(model), **config.eval)
    problems.raise_any()
    return evaluator.Evaluator(loaded, model, evaluation, config.input)


def _write_csv(args: argparse.Namespace, one: Any, predicted: Any) -> None:
    """The requested files, of the raw weights unless --ema was given."""
    from deit_jax.evaluation import predictions

    names = one.data.class_names or [str(number) for number in range(one.data.num_classes)]
    for path, write in (
        (args.confusion, predictions.write_confusion),
        (args.per_class, predictions.write_per_class),
    ):
        if path:
            write(storage.path(path), predicted, names)
            print(f"wrote {path}")


def _draw(args: argparse.Namespace, one: Any, predictions: dict[str, Any]) -> None:
    """The figures, of the raw weights unless --ema was given."""
    from deit_jax import figures
    from deit_jax.evaluation import rows

    weights, predicted = next(iter(predictions.items()))
    names = rows.class_names(one.data)
    title = f"{one.name}, {weights}" if len(predictions) > 1 else one.name
    found = predicted.rows()
    for name, drawn in (
        ("confusion", rows.confusion_figure(found, names, title)),
        ("worst", rows.worst_figure(found, one.data.eval, names, title)),
    ):
        print(f"wrote {figures.save(drawn, storage.path(args.figures) / f'{name}.png')}")
