"""Stored labels against the live teacher on CIFAR-10 (configs/cifar10.py), over several seeds.

    python benchmarks/table3.py --runs=runs/table3 --form=short --seeds=0,1,2 \
        --config.data.data_dir=DIR
    python benchmarks/stored_labels.py --runs=runs/table3 --form=short --seeds=0,1,2 \
        --config.data.data_dir=DIR

Works in the folder of table3.py, of whose runs it needs the teacher and row `token`, the live
run with its labels (and makes them where they are not there). Then, per seed, a student with a
distillation token: `stored` with these labels; `epochs 1` and `epochs 2` with the images and
labels of that many epochs over and over (those of the short form's 4 are `stored`); `two` with
labels of the mean of the teacher and a second one, made by `deit-jax labels`. Finished runs are
skipped and interrupted ones resumed; `--jobs=2` trains two at a time. Further `--config.a.b=c` are
passed to every run. Writes `stored_labels.{md,json}` into `--runs`: top-1 on the test images,
mean of both heads, whether `stored` ended with the bits of the live run, and minutes.
"""

import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys

import table3

sys.path.insert(0, str(table3.ROOT))

# Row -> its words.
ROWS = {
    "token": "live teacher",
    "stored": "its labels, stored",
    "epochs_1": "images and labels of 1 epoch, repeated",
    "epochs_2": "images and labels of 2 epochs, repeated",
    "two": "stored labels of two teachers",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--runs", type=pathlib.Path, required=True, help="folder of table3.py's runs")
    add("--form", choices=("full", "short"), default="full")
    add("--seeds", default="0,1,2")
    add("--jobs", type=int, default=1, help="number of concurrent runs")
    add("--teacher", help="workdir of a trained teacher; default: that in --runs, or trains it")
    args, overrides = parser.parse_known_args(argv)
    if wrong := [text for text in overrides if not text.startswith("--config.")]:
        parser.error(f"unknown {', '.join(wrong)}")
    suffix = "_short" if args.form == "short" else ""
    teachers = [pathlib.Path(args.teacher or args.runs / "teacher"), args.runs / "teacher_1"]
    for number, workdir in enumerate(teachers[bool(args.teacher) :], start=bool(args.teacher)):
        table3.train(f"teacher{suffix}", workdir, [*overrides, f"--config.seed={number}"])
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        rows = lambda seed: train_rows(args, f"token{suffix}", seed, teachers, overrides)
        for _ in pool.map(rows, args.seeds.split(",")):
            write(args.runs, report(args, teachers))
    return 0


def train_rows(
    args: argparse.Namespace,
    variant: str,
    seed: str,
    teachers: list[pathlib.Path],
    overrides: list[str],
) -> None:
    """All rows with a seed, one after the other."""
    seeded = [*overrides, f"--config.seed={seed}"]
    labels, of_two = args.runs / f"labels_{seed}", args.runs / f"labels_two_{seed}"
    stored = f"--config.teacher.labels={labels}"
    rows = {
        "token": table3.options(args.runs, "token", seed, str(teachers[0])),
        "stored": [*seeded, stored],
        "epochs_1": [*seeded, stored, "--config.teacher.label_epochs=1"],
        "epochs_2": [*seeded, stored, "--config.teacher.label_epochs=2"],
        "two": [*seeded, f"--config.teacher.labels={of_two}"],
    }
    for row, options in rows.items():
        workdir = args.runs / f"{row}_{seed}"
        if row == "two":
            make_labels(variant, of_two, teachers, seeded)
        log = workdir.with_suffix(".log") if args.jobs > 1 else None
        table3.train(variant, workdir, [*overrides, *options], log=log)


def make_labels(
    variant: str, output: pathlib.Path, teachers: list[pathlib.Path], overrides: list[str]
) -> None:
    """`deit-jax labels` of the mean of all teachers; exits with its status if it fails."""
    code = "import sys; from deit_jax.cli import main; sys.exit(main())"
    first, *others = map(str, teachers)
    command = [
        "labels",
        f"--config={table3.ROOT / 'configs/cifar10.py'}:{variant}",
        f"--output={output}",
        f"--config.teacher.init={first}",
        f"--config.teacher.ensemble={','.join(others)}",
        *overrides,
    ]
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=table3.ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def report(args: argparse.Namespace, teachers: list[pathlib.Path]) -> dict:
    """Results of the runs that are finished, top-1 in percent."""
    from deit_jax.evaluation.results import last_evaluation

    lines, minutes, equal = [], {}, {}
    for row, words in ROWS.items():
        top1 = {}
        for seed in args.seeds.split(","):
            workdir = args.runs / f"{row}_{seed}"
            if (took := table3.minutes_of(workdir)) is not None:
                top1[seed] = 100 * last_evaluation(workdir)["eval/mean/top1"]
                minutes[workdir.name] = took
                if row == "stored":
                    live = args.runs / f"token_{seed}"
                    equal[seed] = last_arrays(workdir) == last_arrays(live)
        if top1:
            lines.append({"row": row, "head": "mean", "words": words, "top1": top1})
    trained = table3.minutes_of(teachers[1]) is not None
    return table3.about(args, teachers[0], lines, minutes) | {
        "second_teacher": table3.teacher_top1(teachers[1]) if trained else None,
        "stored_equals_live_to_the_bit": equal,
    }


def last_arrays(workdir: pathlib.Path) -> dict:
    """Shape, dtype and digest of every array of a run's last checkpoint."""
    from deit_jax.checkpoint import layout

    folder = workdir / "checkpoints"
    return layout.read_description(folder / str(layout.steps_in(folder)[-1])).leaves


def write(folder: pathlib.Path, results: dict) -> None:
    """Writes the results as JSON and as a table, and prints the table."""
    equal = results["stored_equals_live_to_the_bit"].items()
    bits = ", ".join(f"seed {seed} {'yes' if same else 'NO'}" for seed, same in equal)
    text = table3.table(results).replace("row of Table 3", "teacher").rstrip("\n")
    if (second := results["second_teacher"]) is not None:
        text += f" Second teacher: {second:.2f} %."
    text += f" Every array of `stored` equal to that of the live run to the bit: {bits or '-'}.\n"
    (folder / "stored_labels.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "stored_labels.md").write_text(text)
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
