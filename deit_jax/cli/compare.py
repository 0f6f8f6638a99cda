"""`deit-jax compare`: the last evaluations of several runs side by side, and their curves."""

import argparse
import pathlib

from deit_jax.errors import ConfigError

_HEADS = {
    "class": "class head",
    "dist": "distillation head",
    "mean": "mean of logits",
    "softmax_sum": "sum of softmaxes",
}
_WEIGHTS = {"eval": "raw", "eval_ema": "EMA"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser("compare", help="last results of several runs, side by side")
    parser.add_argument(
        "runs", metavar="LABEL=WORKDIR", nargs="+", help="runs, in the order of the columns"
    )
    parser.add_argument("--png", help="also draw all curves into this file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from deit_jax.tracking import curves

    runs = {}
    for text in args.runs:
        label, equals, workdir = text.rpartition("=")
        runs[label if equals else pathlib.Path(workdir).name] = pathlib.Path(workdir)
    print(table({label: last_evaluation(workdir) for label, workdir in runs.items()}))
    for label, workdir in runs.items():
        print(f"TensorBoard of {label}: {workdir / 'tensorboard'}")
    if args.png:
        print(f"curves: {curves.plot_curves(runs, args.png)}")
    return 0


def last_evaluation(workdir: pathlib.Path) -> dict[str, float]:
    """The newest evaluation in `metrics.jsonl`, with its `step`.

    Raises:
      ConfigError: the run is not there or has not been evaluated yet.
    """
    from deit_jax.tracking.writers import FILE_NAME, read_jsonl

    file = workdir / FILE_NAME
    if not file.is_file():
        raise ConfigError(f"{workdir} holds no run ({FILE_NAME} is missing)")
    last = None
    for record in read_jsonl(file):
        if any(key.startswith("eval/") for key in record):
            last = record
    if last is None:
        raise ConfigError(f"the run in {workdir} has not been evaluated yet")
    return last


def table(results: dict[str, dict[str, float]]) -> str:
    """Top-1 in percent: a column for each run, a row for each head and kind of weights."""
    rows = []
    for head, title in _HEADS.items():
        for prefix, weights in _WEIGHTS.items():
            values = [r.get(f"{prefix}/{head}/top1") for r in results.values()]
            if any(value is not None for value in values):
                cells = ["" if v is None else f"{100 * v:.2f}" for v in values]
                rows.append([title, weights, *cells])
    count = {int(r["eval/count"]) for r in results.values() if "eval/count" in r}
    header = [f"top-1, % of {', '.join(map(str, sorted(count)))} images", "weights", *results]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
