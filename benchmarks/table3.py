"""A small Table 3 of the paper: all rows over several seeds, on CIFAR-10 (configs/cifar10.py).

    python benchmarks/table3.py --runs=runs/table3 --form=short --seeds=0,1 \
        --config.data.data_dir=DIR

Trains one teacher, then every row of `--rows` with every seed, by calling train.py. Finished runs
are skipped and interrupted ones resumed. Row `token` keeps the teacher's labels in `labels_SEED`,
which stored_labels.py uses. `--jobs=2` trains two at a time (small models leave a
second core idle), each with its output in a log file. Further `--config.a.b=c` are passed to
every run. Writes `table3.{md,json}` into `--runs`: top-1 on the test images after the last step,
mean and spread (standard deviation, n - 1) over the seeds, hardware, versions and minutes. Row
`token` has three lines: both heads, and the mean of their logits.
"""

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ROWS = ("none", "soft", "hard", "token")
# Lines of the table: (row, head, name in the paper).
LINES = (
    ("none", "class", "no distillation"),
    ("soft", "class", "usual (soft) distillation, class token"),
    ("hard", "class", "hard distillation, class token"),
    ("token", "class", "distillation token: class head"),
    ("token", "dist", "distillation token: distillation head"),
    ("token", "mean", "distillation token: both"),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0], allow_abbrev=False)
    parser.add_argument(
        "--runs", type=pathlib.Path, required=True, help="parent folder of the runs"
    )
    parser.add_argument("--form", choices=("full", "short"), default="full")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="number of concurrent runs")
    parser.add_argument("--teacher", help="workdir of a trained teacher; default: trains one")
    args, overrides = parser.parse_known_args(argv)
    wrong = [text for text in overrides if not text.startswith("--config.")]
    unknown = [row for row in args.rows.split(",") if row not in ROWS]
    if wrong or unknown:
        parser.error(f"unknown {', '.join(wrong or unknown)}; rows: {', '.join(ROWS)}")
    suffix = "_short" if args.form == "short" else ""
    teacher = args.teacher or str(args.runs / "teacher")
    if not args.teacher:
        train(f"teacher{suffix}", args.runs / "teacher", overrides)
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = []
        for seed in args.seeds.split(","):
            for row in args.rows.split(","):
                extra = options(args.runs, row, seed, teacher)
                workdir = args.runs / f"{row}_{seed}"
                log = workdir.with_suffix(".log") if args.jobs > 1 else None
                futures.append(
                    pool.submit(train, f"{row}{suffix}", workdir, [*overrides, *extra], log=log)
                )
        for future in concurrent.futures.as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()
            write(args.runs, report(args, teacher))
    return 0


def options(runs: pathlib.Path, row: str, seed: str, teacher: str) -> list[str]:
    """Of the run of a row, besides those of all runs."""
    given = [f"--config.seed={seed}"]
    if row != "none":
        given.append(f"--config.teacher.init={teacher}")
    if row == "token":
        given.append(f"--config.teacher.record={runs / f'labels_{seed}'}")
    return given


def train(
    variant: str, workdir: pathlib.Path, overrides: list[str], *, log: pathlib.Path | None = None
) -> None:
    """Trains one run and records its minutes; exits with its status if it fails."""
    record = workdir / "minutes.json"
    if record.is_file():
        print(f"{workdir}: already finished", flush=True)
        return
    print(f"== {variant} in {workdir}", flush=True)
    start = time.perf_counter()
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT / 'configs/cifar10.py'}:{variant}",
        f"--workdir={workdir}",
        *overrides,
    ]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("a")) if log else None
        done = subprocess.run(command, check=False, stdout=out, stderr=out and subprocess.STDOUT)
    status = done.returncode
    if status:
        sys.exit(status)
    minutes = (time.perf_counter() - start) / 60
    record.write_text(json.dumps({"minutes": minutes}) + "\n")


def report(args: argparse.Namespace, teacher: str) -> dict:
    """Results of the runs that are finished: per line the top-1 of every seed, in percent."""
    from deit_jax.evaluation.results import last_evaluation

    lines, minutes = [], {}
    for row, head, words in LINES:
        top1 = {}
        for seed in args.seeds.split(","):
            workdir = args.runs / f"{row}_{seed}"
            if (took := minutes_of(workdir)) is not None:
                top1[seed] = 100 * last_evaluation(workdir)[f"eval/{head}/top1"]
                minutes[workdir.name] = took
        if top1:
            lines.append({"row": row, "head": head, "words": words, "top1": top1})
    return about(args, pathlib.Path(teacher), lines, minutes)


def about(
    args: argparse.Namespace, teacher: pathlib.Path, lines: list[dict], minutes: dict[str, float]
) -> dict:
    """The report of these lines."""
    return {
        "form": args.form,
        "jobs": args.jobs,
        "teacher": {"workdir": str(teacher), "top1": teacher_top1(teacher)},
        "lines": lines,
        "minutes": minutes,
        "hardware": hardware(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax")},
    }


def minutes_of(workdir: pathlib.Path) -> float | None:
    """How long a run took; None for one that is not finished."""
    record = workdir / "minutes.json"
    return json.loads(record.read_text())["minutes"] if record.is_file() else None


def teacher_top1(workdir: pathlib.Path) -> float | None:
    """Of a teacher's last evaluation, in percent; None where it is no run."""
    from deit_jax.evaluation.results import last_evaluation

    return 100 * last_evaluation(workdir)["eval/class/top1"] if workdir.is_dir() else None


def hardware() -> str:
    """JAX devices, listed in a subprocess so that none stays in use, and processor cores."""
    code = "import jax; d = jax.devices(); print(len(d), d[0].device_kind)"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{listed.stdout.strip()}, {cores} {platform.machine()} cores"


def table(results: dict) -> str:
    """The report as Markdown."""
    seeds = sorted({seed for line in results["lines"] for seed in line["top1"]})
    head = ["row of Table 3", *(f"seed {seed}" for seed in seeds), "mean", "spread"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for line in results["lines"]:
        values = list(line["top1"].values())
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        cells = [f"{line['top1'][s]:.2f}" if s in line["top1"] else "" for s in seeds]
        rows.append([line["words"], *cells, f"{statistics.mean(values):.2f}", spread])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    top1 = results["teacher"]["top1"]
    teacher = "unknown" if top1 is None else f"{top1:.2f} %"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{text}\n\nCIFAR-10, configs/cifar10.py ({results['form']} form), top-1 in % on the test "
        f"images. Teacher: {teacher}. {results['hardware']}; {versions}; "
        f"{sum(results['minutes'].values()):.0f} minutes in all for the "
        f"{len(results['minutes'])} runs, "
        f"{results['jobs']} at a time.\n"
    )


def write(folder: pathlib.Path, results: dict) -> None:
    """Writes the results as JSON and as a table, and prints the table."""
    (folder / "table3.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "table3.md").write_text(table(results))
    print(table(results), flush=True)


if __name__ == "__main__":
    sys.exit(main())
