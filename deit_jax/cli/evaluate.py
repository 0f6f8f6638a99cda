"""`deit-jax evaluate`: accuracy of a checkpoint on its own data, ImageNet, ImageNet V2, ReaL."""

import argparse
import json
import pathlib
from typing import Any

HEADS = {
    "class": "class head",
    "dist": "distillation head",
    "mean": "mean of logits",
    "softmax_sum": "sum of softmaxes",
}
RAW, EMA = "raw", "EMA"
# Of a stored or given config, what evaluation goes by.
_SECTIONS = ("data", "eval", "input")

DESCRIPTION = """\
Sets: val, the evaluation split of the checkpoint's own run, or of --config, or of
--config.data.*, else ImageNet's validation images; v2, ImageNet V2 matched frequency; real,
ImageNet's validation images with the reassessed labels. All are read as tfds has prepared
them (--config.data.data_dir=DIR). Accuracies of the two heads of a distilled model, of the
mean of their logits (the official evaluation) and of the sum of their softmaxes (the
paper's text); of a run that kept averaged weights, for these too.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="accuracy of a checkpoint: ImageNet, V2, ReaL, or its own data",
        usage="deit-jax evaluate --checkpoint=PATH|NAME [--data=val,v2,real] [options] "
        "[--config.key=value ...]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # --config.a.b is not an abbreviation of anything.
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint", required=True, help="file, folder, workdir, or name of a published model"
    )
    parser.add_argument("--model", help="registered name, when the shapes do not tell it")
    parser.add_argument("--ema", action="store_true", help="the averaged weights alone")
    parser.add_argument("--config", metavar="FILE[:variant]", help="whose data and eval sections")
    parser.add_argument(
        "--data", action="append", metavar="SET,...", help="val, v2, real; default: val"
    )
    parser.add_argument("--image-size", type=int, help="side in pixels; default: the checkpoint's")
    parser.add_argument("--crop-ratio", type=float, help="default: the checkpoint's")
    parser.add_argument("--dtype", default="float32", help="to compute in; default: float32")
    parser.add_argument("--json", metavar="FILE", help="write the results")
    parser.add_argument("--confusion", metavar="FILE.csv", help="of the first set")
    parser.add_argument("--per-class", metavar="FILE.csv", help="of the first set")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax.errors import ConfigError
    from deit_jax.evaluation import datasets

    candidates = load_candidates(args)
    loaded = next(iter(candidates.values()))
    config = _config(args, loaded)
    names = list(dict.fromkeys(n for text in args.data or ["val"] for n in text.split(",")))
    if (args.confusion or args.per_class) and names[0] == "real":
        raise ConfigError("confusions need one label an image: put another set before real")
    # All of them before the first takes its time.
    sets = [datasets.open_set(name, config.data, num_classes=loaded.num_classes) for name in names]
    for one in sets:
        _check_class_names(loaded, one)
    evaluator = Evaluator(loaded, config, image_size=args.image_size, dtype=args.dtype)
    results: dict[str, Any] = {}
    print(evaluator.description, flush=True)
    for one in sets:
        print(one.data.description, flush=True)
        predictions = {
            weights: evaluator.predict(candidate, one) for weights, candidate in candidates.items()
        }
        results[one.name] = {weights: _score(p, one) for weights, p in predictions.items()}
        print(table({one.name: results[one.name]}), flush=True)
        for weights, predicted in predictions.items():
            if "dist" in predicted.choices:
                print(_agreement(weights, predicted, one), flush=True)
        if one is sets[0]:
            for path in _write_csv(args, one, next(iter(predictions.values()))):
                print(f"wrote {path}")
    if args.json:
        path = pathlib.Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(evaluator.facts | {"results": results}, indent=2) + "\n")
        print(f"wrote {path}")
    return 0


def load_candidates(args: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint's weights by kind: raw, and averaged where a run of ours has kept them."""
    from deit_jax import pretrained

    load = lambda ema: pretrained.load_checkpoint(args.checkpoint, ema=ema, model=args.model)
    if args.ema:
        return {EMA: load(True)}
    candidates = {RAW: load(False)}
    run_config = candidates[RAW].metadata.get("config", {})
    if run_config.get("step", {}).get("ema_decay", 0.0) > 0:
        candidates[EMA] = load(True)
    return candidates


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


def _check_class_names(loaded: Any, one: Any) -> None:
    """Refuses data whose classes are numbered otherwise than those of a run of ours."""
    from deit_jax.errors import ConfigError

    ours, theirs = loaded.class_names, one.data.class_names
    if loaded.format != "deit_jax" or not ours or not theirs or tuple(ours) == tuple(theirs):
        return
    first = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    raise ConfigError(
        f"{one.data.description}: class {first} is {theirs[first]!r}, for the checkpoint it is "
        f"{ours[first]!r}; the classes of both must be the same, in the same order"
    )


class Evaluator:
    """A model of the checkpoint's kind on all devices, ready to predict sets."""

    def __init__(self, loaded: Any, config: Any, *, image_size: int | None, dtype: str):
        import jax

        from deit_jax import augment, models, sharding
        from deit_jax.errors import Problems
        from deit_jax.evaluation import predictions
        from deit_jax.train import experiment

        sizes = {"image_size": image_size} if image_size else {}
        self.model = loaded.create_model(dtype=dtype, **sizes)
        self.side = square_side(self.model)
        self.mesh = sharding.make_mesh()
        self.rows = sharding.batch_sharding(self.mesh)
        problems = Problems(config)
        with problems.section("eval"):
            self.options = experiment.make_evaluation(image_size=self.side, **config.eval)
        problems.raise_any()
        self.reading = {
            key: config.input[key] for key in ("threads", "prefetch", "max_corrupt_share")
        }
        transform = augment.make_eval_transform(
            image_size=self.side,
            crop_ratio=self.options.crop_ratio,
            mean=loaded.mean,
            std=loaded.std,
        )
        step = predictions.make_prediction_step(model=self.model, transform=transform)
        self.step = jax.jit(step)
        self.facts = {
            "checkpoint": loaded.source,
            "model": loaded.model,
            "parameters": models.count(self.model).parameters,
            "image_size": self.side,
            "crop_ratio": self.options.crop_ratio,
            "dtype": dtype,
        }

    @property
    def description(self) -> str:
        f = self.facts
        return (
            f"{f['model']} from {f['checkpoint']}, {f['parameters']:,} parameters, at "
            f"{f['image_size']} px, crop ratio {f['crop_ratio']:g}, in {f['dtype']}"
        )

    def predict(self, loaded: Any, one: Any) -> Any:
        """`Predictions` of these weights for every image of an evaluation set."""
        import jax

        from deit_jax import data, pretrained, sharding
        from deit_jax.evaluation import predictions

        variables = pretrained.adapt(loaded, model=self.model).variables
        variables = jax.device_put(variables, sharding.replicated(self.mesh))
        devices, e = self.mesh.size, self.options
        host = data.eval_batches(
            one.data.eval,
            batch_size=-(-e.batch_size // devices) * devices,
            canvas=e.canvas,
            image_size=self.side,
            crop_ratio=e.crop_ratio,
            **self.reading,
        )
        put = lambda batch: sharding.to_global(self.rows, batch)  # noqa: E731
        with data.prefetch_to_device(host, put) as batches:
            return predictions.predict(self.step, variables, batches)


def square_side(model: Any) -> int:
    """The side in pixels of the images that `model` takes."""
    from deit_jax.errors import ConfigError

    if model.image_size[0] != model.image_size[1]:
        raise ConfigError(f"only square models are evaluated, not {model.image_size}")
    return model.image_size[0]


def _score(predicted: Any, one: Any) -> dict[str, Any]:
    """`count` and for each head its accuracies."""
    from deit_jax.evaluation import predictions

    if one.label_sets is None:
        return {"count": len(predicted.label)} | predictions.accuracies(predicted)
    heads, count = predictions.real_accuracies(predicted, one.label_sets)
    return {"count": count} | heads


def _agreement(weights: str, predicted: Any, one: Any) -> str:
    """Who differs from whom, as text; without the label where images have several."""
    from deit_jax.evaluation import agreement

    choices = {head: best[:, 0] for head, best in predicted.choices.items()}
    if one.label_sets is None:
        choices["label"] = predicted.label
    return agreement.table(
        agreement.differences(choices), title=f"{one.name}, {weights}: differ, % of images"
    )


def _write_csv(args: argparse.Namespace, one: Any, predicted: Any) -> list[pathlib.Path]:
    """The files that were asked for, of the raw weights unless --ema was given."""
    from deit_jax.evaluation import predictions

    classes = one.data.num_classes
    names = one.data.class_names or [str(number) for number in range(classes)]
    written = []
    if args.confusion:
        head = "mean" if "mean" in predicted.choices else "class"
        counts = predictions.confusion(predicted, head, classes)
        written.append(predictions.write_confusion(args.confusion, counts, names))
    if args.per_class:
        images, top1 = predictions.per_class(predicted, classes)
        written.append(predictions.write_per_class(args.per_class, images, top1, names))
    return written


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Results by set, kind of weights and head, as text: shares in percent."""
    lines = [
        f"{'set':<5} {'weights':<8} {'head':<18} {'top-1 %':>8} {'top-5 %':>8} {'loss':>8} "
        f"{'images':>8}"
    ]
    for name, by_weights in results.items():
        for weights, scores in by_weights.items():
            for head, title in HEADS.items():
                if head not in scores:
                    continue
                cells = [
                    f"{100 * scores[head][key]:.3f}" if key in scores[head] else "-"
                    for key in ("top1", "top5")
                ]
                loss = scores[head].get("loss")
                cells.append("-" if loss is None else f"{loss:.4f}")
                right = " ".join(f"{cell:>8}" for cell in [*cells, f"{scores['count']:,}"])
                lines.append(f"{name:<5} {weights:<8} {title:<18} {right}")
    return "\n".join(lines)
