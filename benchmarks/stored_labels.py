"""Stored labels against the live teacher on CIFAR-10 (configs/cifar10.py), over several seeds.

    python benchmarks/stored_labels.py --runs=runs/stored_labels --form=short --seeds=0,1,2 \
        --config.data.data_dir=DIR
    python benchmarks/stored_labels.py --reading
    python benchmarks/stored_labels.py --kept
    python benchmarks/stored_labels.py --steps

Trains two teachers, then per seed a student with a distillation token: `live` with the first
teacher, which records its labels; `stored` with these; `epochs 1` and `epochs 2` with the images
and labels of that many epochs over and over; `two` with labels of the mean of both teachers, made
by `deit-jax labels`. Finished runs are skipped and interrupted ones resumed. Further
`--config.a.b=c` are passed to every run. Writes `stored_labels.{md,json}` into `--runs`: top-1 on
the test images, mean of both heads, whether `stored` ended with the bits of `live`, and minutes.

`--reading` measures how fast labels of ImageNet's size are read and written on this machine;
`--kept` what is lost where only the k largest of 1,000 logits are stored; `--steps` the CPU time
of a small step with stored labels, and of one that records, beside those without.
"""

import argparse
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import table3

sys.path.insert(0, str(table3.ROOT))

# Row -> its words; what follows in `commands` is in this order.
ROWS = {
    "live": "live teacher",
    "stored": "its labels, stored",
    "epochs_1": "images and labels of 1 epoch, repeated",
    "epochs_2": "images and labels of 2 epochs, repeated",
    "two": "stored labels of two teachers",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0], allow_abbrev=False)
    parser.add_argument("--runs", type=pathlib.Path, help="parent folder of the runs")
    parser.add_argument("--form", choices=("full", "short"), default="full")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--reading", action="store_true", help="measure reading and writing alone")
    parser.add_argument("--kept", action="store_true", help="measure what the k largest keep")
    parser.add_argument("--steps", action="store_true", help="measure the CPU time of steps")
    args, overrides = parser.parse_known_args(argv)
    wrong = [text for text in overrides if not text.startswith("--config.")]
    measured = [what for what in (reading, kept, steps) if getattr(args, what.__name__)]
    if wrong or (args.runs is not None) + len(measured) != 1:
        problem = f"unknown {', '.join(wrong)}" if wrong else "give --runs or one of the others"
        parser.error(problem)
    if measured:
        print(json.dumps(measured[0](), indent=2))
        return 0
    suffix = "_short" if args.form == "short" else ""
    teachers = [args.runs / f"teacher_{number}" for number in (0, 1)]
    for number, workdir in enumerate(teachers):
        table3.train(f"teacher{suffix}", workdir, [*overrides, f"--config.seed={number}"])
    for seed in args.seeds.split(","):
        seeded = [*overrides, f"--config.seed={seed}"]
        for row, options in commands(args.runs, seed, teachers).items():
            if row == "two":
                make_labels(f"token{suffix}", args.runs / f"labels_two_{seed}", teachers, seeded)
            workdir = args.runs / f"{row}_{seed}"
            table3.train(f"token{suffix}", workdir, [*seeded, *options])
            write(args.runs, report(args.runs, args.form, args.seeds.split(",")))
    return 0


def commands(runs: pathlib.Path, seed: str, teachers: list[pathlib.Path]) -> dict[str, list[str]]:
    """The `teacher` options of each row."""
    recorded = runs / f"labels_{seed}"
    stored = f"--config.teacher.labels={recorded}"
    return {
        "live": [
            f"--config.teacher.init={teachers[0]}",
            f"--config.teacher.record={recorded}",
            "--config.eval.agreement=false",
        ],
        "stored": [stored, "--config.eval.agreement=false"],
        "epochs_1": [stored, "--config.teacher.label_epochs=1"],
        "epochs_2": [stored, "--config.teacher.label_epochs=2"],
        "two": [f"--config.teacher.labels={runs / f'labels_two_{seed}'}"],
    }


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


def report(runs: pathlib.Path, form: str, seeds: list[str]) -> dict:
    """Results of the runs that are finished, top-1 in percent."""
    from deit_jax.evaluation.results import last_evaluation

    lines, minutes, equal = [], {}, {}
    for row, words in ROWS.items():
        top1 = {}
        for seed in seeds:
            workdir = runs / f"{row}_{seed}"
            if (workdir / "minutes.json").is_file():
                top1[seed] = 100 * last_evaluation(workdir)["eval/mean/top1"]
                minutes[workdir.name] = json.loads((workdir / "minutes.json").read_text())[
                    "minutes"
                ]
                if row == "stored":
                    equal[seed] = last_arrays(workdir) == last_arrays(runs / f"live_{seed}")
        if top1:
            lines.append({"row": row, "head": "mean", "words": words, "top1": top1})
    return {
        "form": form,
        "jobs": 1,
        "teacher": {"top1": 100 * last_evaluation(runs / "teacher_0")["eval/class/top1"]},
        "second_teacher": 100 * last_evaluation(runs / "teacher_1")["eval/class/top1"],
        "lines": lines,
        "stored_equals_live_to_the_bit": equal,
        "minutes": minutes,
        "hardware": table3.hardware(),
        "versions": {name: table3.importlib.metadata.version(name) for name in ("jax", "flax")},
    }


def last_arrays(workdir: pathlib.Path) -> dict:
    """Shape, dtype and digest of every array of a run's last checkpoint."""
    from deit_jax.checkpoint import layout

    folder = workdir / "checkpoints"
    return layout.read_description(folder / str(layout.steps_in(folder)[-1])).leaves


def write(folder: pathlib.Path, results: dict) -> None:
    """Writes the results as JSON and as a table, and prints the table."""
    bits = ", ".join(
        f"seed {seed} {'yes' if same else 'NO'}"
        for seed, same in results["stored_equals_live_to_the_bit"].items()
    )
    text = table3.table(results).replace("row of Table 3", "teacher").rstrip("\n")
    text += f" Second teacher: {results['second_teacher']:.2f} %. Every array of `stored` equal "
    text += f"to that of `live` to the bit: {bits or 'not run yet'}.\n"
    (folder / "stored_labels.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "stored_labels.md").write_text(text)
    print(text, flush=True)


def reading(steps: int = 1251, batch: int = 1024, classes: int = 1000) -> dict:
    """Seconds of this process per step of 1,024 images: writing one epoch, and reading it."""
    import jax.numpy as jnp
    import numpy as np

    from deit_jax.teacher import Recorder, StoredLabels, kinds, manifest

    found = {}
    for name, kind in {"hard": kinds.Hard(classes), "soft 10": kinds.Soft(classes, 10)}.items():
        inputs = {"train.batch_size": batch, "steps_per_epoch": steps}
        about = manifest.Manifest(kind, inputs, {"digest": "", "description": ""})
        logits = jnp.asarray(np.random.RandomState(0).randn(batch, classes), jnp.float32)
        rows = kind.encode(logits)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            begun = time.process_time(), time.perf_counter()
            with Recorder(path, about, made={}, print_line=print) as recorder:
                for step in range(steps):
                    recorder.add(step, rows)
                recorder.flush()
            written = time.process_time(), time.perf_counter()
            labels = StoredLabels(path, about, steps)
            records = labels.records(0)
            for _ in range(steps):
                next(records)
            records.close()
            read = time.process_time(), time.perf_counter()
        cpu, wall = (
            [(b - a) / steps * 1e6 for a, b in zip(pair, pair[1:], strict=False)]
            for pair in zip(begun, written, read, strict=True)
        )
        found[name] = {
            "bytes_per_step": labels.bytes_per_step,
            "write_cpu_us_per_step": round(cpu[0], 1),
            "read_cpu_us_per_step": round(cpu[1], 1),
            "read_bytes_per_second": round(labels.bytes_per_step / wall[1] * 1e6),
        }
    return found


def kept(images: int = 5000, classes: int = 1000) -> dict:
    """Distance of the probabilities that stored labels give from the teacher's, by k.

    Half of the sum of absolute differences, mean over the images: the probability that went to
    other classes. Logits are drawn, from one normal distribution for all classes (`spread`), or
    from a standard one with one class raised (`peaked`); by so much that the first choice has the
    mean probability `first`. `tau` divides them in the loss.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from deit_jax.teacher import kinds

    draws = np.random.RandomState(0).randn(images, classes).astype(np.float32)
    raised = np.eye(classes, dtype=np.float32)[np.arange(images) % classes]
    families = {"spread": lambda x: x * draws, "peaked": lambda x: draws + x * raised}
    found = {}
    for (name, family), first in itertools.product(families.items(), (0.5, 0.9)):
        logits = jnp.asarray(family(_solve(lambda x, f=family: _first(f(x)), first)))
        for tau in (1, 3):
            exact, distances = jax.nn.softmax(logits / tau), {}
            for k in (1, 5, 10, 50, 100):
                kind = kinds.Soft(classes, k)
                stored = jax.nn.softmax(kind.decode(kind.encode(logits)) / tau)
                distances[k] = round(float(jnp.abs(stored - exact).sum(-1).mean()) / 2, 5)
            found[f"{name}, first {first}, tau {tau}"] = distances
    return found


def steps(rounds: int = 20, each: int = 4) -> dict:
    """CPU time of this process per step, in rounds of `each` steps of every kind in turn.

    A small DeiT (64 wide, 2 deep, 64 images of 32 pixels) on the digits, without RandAugment; the
    steps read and write their labels as in a run. Medians, and the quartiles of the ratio within
    a round.
    """
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", 1)
    with tempfile.TemporaryDirectory() as folder:
        runs = _steps_of(pathlib.Path(folder), rounds * each)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds):
            names = list(runs)[:: 1 - 2 * (number % 2)]
            for name in names:
                begun = time.process_time()
                for _ in range(each):
                    ended = runs[name]()
                jax.block_until_ready(ended)
                times[name].append((time.process_time() - begun) / each * 1e3)
    found: dict = {f"{name}, ms": round(float(np.median(t)), 2) for name, t in times.items()}
    for one, other in (("stored", "no teacher"), ("recorded", "live")):
        ratio = np.percentile(np.divide(times[one], times[other]), [25, 50, 75])
        found[f"{one} / {other}, quartiles"] = [round(float(r), 4) for r in ratio]
    return found


def _steps_of(folder: pathlib.Path, count: int) -> dict:
    """Kind of run -> a function that makes its next step, compiled already."""
    from deit_jax.train import labels, loop, schema

    load = lambda spec, *more: schema.load(str(table3.ROOT / "configs" / spec), more)
    loop.train(load("quickstart.py:teacher,tiny"), workdir=str(folder / "teacher"))
    small = ("data.source=digits", "model.embed_dim=64", "train.batch_size=64")
    small += (f"train.total_steps={count + 2}", "augment.auto_augment=", "log.trackers=")
    distilled = lambda *more: load("deit_distilled.py:ti,tiny", *small, *more)
    live = "teacher.name=", f"teacher.init={folder / 'teacher'}"
    record = f"teacher.record={folder / 'labels'}"
    labels.make_labels(distilled(*live, record), epochs=None)
    configs = {
        "no teacher": distilled("loss.distillation=none"),
        "stored": distilled(f"teacher.labels={folder / 'labels'}"),
        "live": distilled(*live),
        "recorded": distilled(*live, f"teacher.record={folder / 'again'}"),
    }
    return {name: _stepper(config) for name, config in configs.items()}


def _stepper(config):
    """A function that makes the next step of a run and returns its metrics, unfinished."""
    from deit_jax import checkpoint
    from deit_jax.distributed import sharding
    from deit_jax.train import experiment as experiment_lib
    from deit_jax.train import init
    from deit_jax.train import step as step_lib

    experiment = experiment_lib.build(config)
    with tempfile.TemporaryDirectory() as empty, checkpoint.Checkpointer(empty) as none:
        state = init.first_state(experiment, none)
    train_step = step_lib.jit(experiment.make_train_step(), experiment.batch_sharding)
    teacher, recorder = experiment.place_teacher(), experiment.start_recorder(print)
    batches, number = iter(experiment.train_batches()), itertools.count()

    def step():
        nonlocal state
        batch = sharding.to_global(experiment.batch_sharding, next(batches))
        state, metrics = train_step(state, teacher, batch)
        if (rows := metrics.pop("labels", None)) is not None and recorder:
            recorder.add(next(number), rows)
        return metrics

    for _ in range(2):
        step()
    return step


def _first(logits) -> float:
    """Mean probability of the first choice."""
    import scipy.special

    return float(scipy.special.softmax(logits, axis=-1).max(-1).mean())


def _solve(function, wanted: float) -> float:
    """Where a growing function has a value, between 0 and 100."""
    import scipy.optimize

    return scipy.optimize.brentq(lambda x: function(x) - wanted, 0.0, 100.0, xtol=1e-3)


if __name__ == "__main__":
    sys.exit(main())
