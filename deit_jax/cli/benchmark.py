"""`deit-jax benchmark`: images/s, latency and memory of models and recipes on this machine."""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from deit_jax import storage
from deit_jax.cli import values

DESCRIPTION = """\
Measures inference (images on the device, f32 weights) and training (the whole step: augmentation of
uint8 photos, teacher with random weights, loss, optimizer, EMA) at each batch size. For a MODEL the
recipe is configs/deit.py:b with that model; with --config it is that recipe, at no more than its
own batch size. Neither data nor weights are read: photos are noise. Everything is compiled and
warmed up first; then rounds of all that is measured take turns. Prints medians and quartiles. A
batch that does not fit is one line, and larger ones are left out. One device unless --devices says
otherwise.
"""
# Tried unless --batch-sizes says otherwise; mixing needs an even batch.
_BATCH_SIZES = {"inference": (1, 8, 64, 256, 1024), "training": (8, 64, 256, 1024)}
_ON_CPU = 32


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "benchmark",
        help="images/s, latency and memory on this machine",
        usage="deit-jax benchmark MODEL ... | --config=FILE[:variant] [options] "
        "[--config.key=value ...]",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="*", help="registered names; deit-jax explain lists them")
    add("--config", metavar="FILE[:variant]", help="the recipe")
    add("--what", default="inference,training", help="default: inference,training")
    add("--batch-sizes", type=values.positives, metavar="N,...", help="over all devices")
    add("--image-size", type=values.positive, help="as config.model.image_size")
    add("--dtype", help="as config.model.dtype; default: the recipe's")
    add("--attention", help="as config.model.attention")
    add("--devices", type=values.positive, default=1, help="of this process; default: 1")
    add("--rounds", type=values.positive, default=5, help="of each program; default: 5")
    add("--seconds", type=values.positive_float, default=1.0, help="a round; default: 1")
    add("--output", metavar="FILE.json", help="write the results, with hardware and versions")
    add("--profile", metavar="DIR", help="trace each program; what each part of the model takes")
    add("--plot", metavar="FILE.png", help="published top-1 against images/s, and timm's images/s")
    add("--timm-python", metavar="PYTHON", help="measure timm too, by this one, which has it")
    add("--timm-compile", default="default", metavar="MODE", help="of torch.compile, or none")
    parser.set_defaults(run=run, takes_overrides=True)


def run(args: argparse.Namespace) -> int:
    from deit_jax.errors import ConfigError

    _check(args)
    with_timm = _timm_wanted(args)
    if with_timm:
        # The processes share the device, so none may reserve its memory in advance.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from deit_jax import distributed

    # Before the imports that initialize the devices.
    distributed.keep_freed_arrays()
    from deit_jax.train.speed import measure, report

    subjects = _subjects(args)
    protocol = measure.Protocol(rounds=args.rounds, seconds=args.seconds)
    kinds = args.what.split(",")
    ours = measure.open_cases(subjects, kinds, _batch_sizes(args), protocol, _print)
    if not ours:
        raise ConfigError("nothing was measured: see the lines above")
    results = _measure(args, ours, protocol, with_timm)
    print(report.table(results))
    found = _document(args, results)
    if args.profile:
        found["profiles"] = _profile(args, ours)
    if args.output:
        path = storage.path(args.output)
        storage.write(path, json.dumps(found, indent=1) + "\n")
        print(f"wrote {path}")
    if args.plot:
        _plot(args, results, found["hardware"])
    return 0


def _print(line: str) -> None:
    print(line, flush=True)


def _check(args: argparse.Namespace) -> None:
    """All that can be wrong with the options, before anything takes time."""
    from deit_jax.errors import ConfigError, unknown

    if args.model and args.config:
        raise ConfigError(f"give model names or --config, not both: {', '.join(args.model)}")
    if not args.model and not args.config:
        raise ConfigError("give model names, such as deit_small_patch16_224, or --config")
    for kind in args.what.split(","):
        if kind not in _BATCH_SIZES:
            raise unknown("--what", kind, _BATCH_SIZES)
    if args.output:
        storage.writable_file(args.output, "--output")
    if args.profile:
        storage.writable(args.profile, "--profile")
    if args.plot:
        from deit_jax.figures import style

        storage.writable_file(args.plot, "--plot")
        style.check()
        if "inference" not in args.what:
            raise ConfigError("--plot shows inference: leave out --what=training")


def _subjects(args: argparse.Namespace) -> list[Any]:
    """The recipes that are measured, each with the model as asked for."""
    import jax
    import ml_collections

    from deit_jax import config, config_file
    from deit_jax.distributed import sharding
    from deit_jax.errors import ConfigError, Problems
    from deit_jax.models import registry
    from deit_jax.train import schema
    from deit_jax.train.speed import programs

    options = {"image_size": args.image_size, "dtype": args.dtype, "attention": args.attention}
    overrides = [f"model.{key}={value}" for key, value in options.items() if value is not None]
    overrides += config.split_overrides(args.overrides)
    here = jax.local_devices()
    if args.devices > len(here):
        raise ConfigError(f"--devices={args.devices}, but this process has {len(here)}")

    def subject(label: str, resolved: Any, **sizes: Any) -> Any:
        problems = Problems(resolved)
        with problems.section("mesh"):
            mesh = sharding.make_mesh(here[: args.devices], **resolved.mesh)
        problems.raise_any()
        found = programs.Subject(label, resolved, mesh, **sizes)
        _ = found.own  # all that is wrong with the recipe
        return found

    if args.config:
        resolved = schema.load(args.config, overrides)
        label = args.config.rpartition("/")[2].replace(".py", "")
        return [subject(label, resolved, num_classes=_classes(resolved))]
    found = []
    for name in dict.fromkeys(args.model):
        given: Any = config_file.read("deit:b")[0]
        known = registry.options({"name": name})
        kept = {key: value for key, value in given.model.items() if key in known}
        given.model = ml_collections.ConfigDict(kept | {"name": name})
        found.append(subject(name, schema.resolve(given, overrides)))
    return found


def _classes(resolved: Any) -> int:
    """Of the recipe's data: as it is here, else as published, else ImageNet's."""
    from deit_jax import data
    from deit_jax.cli.explain import PUBLISHED_SIZES
    from deit_jax.errors import ConfigError
    from deit_jax.train.speed.synthetic import CLASSES

    try:
        return data.open_data(**resolved.data).num_classes
    except (ConfigError, OSError):
        name = resolved.data.get("name"), resolved.data.get("train_split")
        if name not in PUBLISHED_SIZES:
            _print(f"the recipe's data is not here: {CLASSES:,} classes are assumed")
        return PUBLISHED_SIZES.get(name, (0, CLASSES))[1]


def _batch_sizes(args: argparse.Namespace) -> Callable[[Any, str], Sequence[int]]:
    def sizes(subject: Any, kind: str) -> Sequence[int]:
        if args.batch_sizes:
            return args.batch_sizes
        on_cpu = subject.mesh.devices.flat[0].platform == "cpu"
        most = _ON_CPU if on_cpu else _BATCH_SIZES[kind][-1]
        if args.config:
            most = min(most, subject.config.train.batch_size)
        devices = subject.mesh.size
        return sorted({min(size, most) for size in _BATCH_SIZES[kind] if size >= devices})

    return sizes


def _timm_wanted(args: argparse.Namespace) -> bool:
    from deit_jax.train.speed import timm_cases

    if args.timm_python or not args.plot or timm_cases.is_installed():
        return bool(args.timm_python or args.plot)
    _print("torch and timm are not installed here: the figure has this library alone")
    return False


def _measure(
    args: argparse.Namespace, ours: Sequence[Any], protocol: Any, with_timm: bool
) -> list[dict[str, Any]]:
    """The results of everything, timm's in turn with ours."""
    import contextlib

    from deit_jax.errors import ConfigError
    from deit_jax.train.speed import measure, timm_cases

    theirs: list[Any] = []
    with contextlib.ExitStack() as stack:
        if with_timm:
            platform = ours[0].program.subject.mesh.devices.flat[0].platform
            try:
                worker = timm_cases.start(args.timm_python, args.timm_compile, platform)
            except ConfigError as error:
                if args.timm_python:
                    raise
                _print(str(error))
            else:
                stack.callback(worker.close)
                theirs = timm_cases.open_cases(worker, ours, protocol, args.timm_compile, _print)
        count = len(ours) + len(theirs)
        _print(f"measuring {count} programs in turn, {protocol.rounds} rounds")
        return measure.measure([*ours, *theirs], protocol, _print)


def _document(args: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    from deit_jax.tracking import provenance
    from deit_jax.train.speed import report

    names = ("model", "config", "overrides", "batch_sizes", "rounds", "seconds", "devices")
    return {
        "what": "images/s and latency, medians and quartiles; GiB of one device",
        "settings": {name: getattr(args, name) for name in names},
        "hardware": report.hardware(),
        "versions": provenance.collect(),
        "results": results,
    }


def _profile(args: argparse.Namespace, ours: Sequence[Any]) -> dict[str, Any]:
    """Traces the largest batch of each program; a table of its parts."""
    from deit_jax.train.speed import by_part

    largest = {(c.program.subject.label, c.program.kind): c for c in ours}
    found = {}
    for (label, kind), case in largest.items():
        program = case.program
        words = f"{label}-{kind}-{program.batch_size}".replace(":", "_").replace(",", "_")
        folder = storage.path(args.profile) / words
        by_part.record(program.call, folder)
        text = program.compiled.as_text() or ""
        found[case.name] = parts = by_part.read(folder, text, program.batch_size)
        print(f"{case.name}, traced in {folder}")
        if parts:
            print(by_part.table(parts))
        else:
            print("  the trace names no operation of the program; open it with TensorBoard")
    return found


def _plot(args: argparse.Namespace, results: list[dict[str, Any]], on: dict[str, Any]) -> None:
    from deit_jax import figures
    from deit_jax.train.speed import published

    points, left_out = published.points(results)
    for line in left_out:
        _print(line)
    device = f"{args.devices} x {on['device']}" if args.devices > 1 else on["device"]
    types = ", ".join(dict.fromkeys(r["dtype"] for r in results))
    notes = published.sources([result["name"] for result in results])
    figure = figures.speed(points, title=f"Inference on {device}, {types}", notes=notes)
    print(f"wrote {figures.save(figure, args.plot)}")
