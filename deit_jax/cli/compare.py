"""`deit-jax compare`: last evaluations of several runs, their goodput and curves."""

import argparse


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("compare", help="last results of several runs, side by side")
    parser.add_argument(
        "runs", metavar="LABEL=WORKDIR", nargs="+", help="runs, in the order of the columns"
    )
    parser.add_argument("--png", help="also plot all curves into this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax import figures, storage
    from deit_jax.evaluation import results
    from deit_jax.tracking import series, starts

    if args.png:
        storage.writable_file(args.png, "--png")
    runs = {}
    for text in args.runs:
        label, equals, workdir = text.rpartition("=")
        path = storage.path(workdir)
        runs[label if equals else path.name] = path
    print(results.comparison_table({k: results.last_evaluation(w) for k, w in runs.items()}))
    for label, workdir in runs.items():
        print(f"goodput of {label}: {starts.goodput(workdir) or 'not recorded'}")
    for label, workdir in runs.items():
        if (workdir / "tensorboard").is_dir():
            print(f"TensorBoard of {label}: {workdir / 'tensorboard'}")
    if args.png:
        drawn = figures.curves({k: series.read_series(w) for k, w in runs.items()})
        print(f"curves: {figures.save(drawn, args.png)}")
    return 0
