"""What stored labels cost, on this machine and in the programs of accelerators.

    python benchmarks/label_costs.py --recording
    python benchmarks/label_costs.py --reading
    python benchmarks/label_costs.py --steps
    python benchmarks/label_costs.py --kept

`--recording` is the CPU time that keeping a live teacher's answers adds to a step of 1,024
images, `--reading` that of reading them, `--steps` the CPU time of DeiT-Ti's step at 224 pixels
with stored labels beside that without a teacher, `--kept` what is lost where only the k largest
of 1,000 logits are stored. Results are printed as JSON.

What a step with labels costs beside one without on an accelerator is told by `programs.py
--config.teacher.labels=DIR`, for which `labels.json` is enough.
"""

import argparse
import functools
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Of ImageNet in DeiT's recipe.
BATCH, STEPS, CLASSES = 1024, 1251, 1000


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    add = functools.partial(parser.add_argument, action="store_true")
    add("--recording", help="measure what recording adds to a step")
    add("--reading", help="measure reading labels")
    add("--steps", help="measure steps with stored labels and without a teacher")
    add("--kept", help="measure what the k largest logits keep")
    given = vars(parser.parse_args(argv))
    chosen = [what for what in (recording, reading, steps, kept) if given[what.__name__]]
    if len(chosen) != 1:
        parser.error("give one of the options")
    print(json.dumps(chosen[0](), indent=2))
    return 0


def _sets():
    """Name -> (manifest of a set, the rows of a step)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from deit_jax.teacher import kinds, manifest

    logits = jnp.asarray(np.random.RandomState(0).randn(BATCH, CLASSES), jnp.float32)
    inputs = {"train.batch_size": BATCH, "steps_per_epoch": STEPS}
    for name, kind in {
        "hard": kinds.Hard(CLASSES),
        "soft, 10": kinds.Soft(CLASSES, 10),
        "soft, all": kinds.Soft(CLASSES, CLASSES),
    }.items():
        rows = jax.block_until_ready(kind.encode(logits))
        yield name, (manifest.Manifest(kind, inputs, {"digest": "", "description": ""}), rows)


def recording(megabytes: int = 80, most: int = 200, pause: float = 5e-3, repeats: int = 5) -> dict:
    """CPU microseconds that recording adds to a step, medians over several files.

    A step is a pause here, so that the thread which writes sleeps between steps as it does in a
    run. `caller` is the part of the thread that starts the steps; the file of the steps is
    written at the end, which `in all` includes.
    """
    import jax.numpy as jnp

    from deit_jax.teacher import Recorder

    found: dict = {}
    for name, (about, rows) in _sets():
        size = about.files(pathlib.Path()).record.itemsize
        steps = min(megabytes * 10**6 // size, most)
        times: dict[str, list[float]] = {"caller": [], "in all": []}
        for _ in range(repeats):
            with (
                tempfile.TemporaryDirectory() as folder,
                Recorder(pathlib.Path(folder), about, made={}, print_line=print) as recorder,
            ):
                # Arrays of their own: jax keeps what it has copied to the host once.
                each = [{key: jnp.array(value) for key, value in rows.items()} for _ in range(8)]
                spent = _paused(steps, pause, lambda step, labels: None, each)
                with_it = _paused(steps, pause, recorder.add, each, recorder.flush)
            for key, one, other in zip(times, with_it, spent, strict=True):
                times[key].append((one - other) / steps * 1e6)
        found[name] = {key: round(statistics.median(t), 1) for key, t in times.items()}
    return found


def _paused(
    steps: int, pause: float, act: Callable, given: list, end: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """CPU seconds of this thread in `act`, and of the process, in `steps` paused steps."""
    own, begun = 0.0, time.process_time()
    for step in range(steps):
        time.sleep(pause)
        before = time.thread_time()
        act(step, given[step % len(given)])
        own += time.thread_time() - before
    end()
    return own, time.process_time() - begun


def reading() -> dict:
    """CPU microseconds to read and check the labels of a step, and bytes read per second."""
    from deit_jax.teacher import Recorder, StoredLabels

    found = {}
    for name, (about, rows) in _sets():
        steps = 100 if name == "soft, all" else STEPS
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            with Recorder(path, about, made={}, print_line=print) as recorder:
                for step in range(steps):
                    recorder.add(step, rows)
                recorder.flush()
            labels = StoredLabels(path, about, steps)
            records = labels.records(0)
            begun = time.process_time(), time.perf_counter()
            for _ in range(steps):
                next(records)
            records.close()
            cpu, wall = time.process_time() - begun[0], time.perf_counter() - begun[1]
        found[name] = {
            "bytes per step": labels.bytes_per_step,
            "CPU us per step": round(cpu / steps * 1e6, 1),
            "bytes per second": round(labels.bytes_per_step * steps / wall),
        }
    return found


def steps(seconds: float = 100.0, batch: int = 8) -> dict:
    """CPU time of DeiT-Ti's step with stored labels over that without a teacher, in pairs.

    224 pixels, the whole recipe but RandAugment, images of the digits; batches are made and
    labels read as in a run. Pairs of one step each, in both orders; the mean of the ratios with
    its interval of 95 %.
    """
    from deit_jax import distributed

    distributed.keep_freed_arrays()
    import jax
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        runs = _runs(pathlib.Path(folder), batch)
        times: dict[str, list[float]] = {name: [] for name in runs}
        ended = time.perf_counter() + seconds
        for number in itertools.count():
            if time.perf_counter() > ended and number % 2 == 0:
                break
            for name in list(runs)[:: 1 - 2 * (number % 2)]:
                begun = time.process_time()
                jax.block_until_ready(runs[name]())
                times[name].append((time.process_time() - begun) * 1e3)
    without, stored = (np.array(values) for values in times.values())
    # Of two pairs, one in each order.
    ratios = (stored.reshape(-1, 2).sum(1)) / (without.reshape(-1, 2).sum(1))
    error = 1.96 * ratios.std(ddof=1) / len(ratios) ** 0.5
    medians = {f"{name}, ms": round(float(np.median(t)), 2) for name, t in times.items()}
    interval = [round(float(ratios.mean() + sign * error), 4) for sign in (-1, 0, 1)]
    return medians | {"pairs": len(without), "stored / no teacher, low, mean, high": interval}


def _runs(folder: pathlib.Path, batch: int) -> dict:
    """Name -> a function that makes the next step of a run, compiled already."""
    from deit_jax.train import labels, loop, schema

    load = lambda spec, *more: schema.load(str(ROOT / "configs" / spec), more)
    loop.train(load("quickstart.py:teacher,tiny"), workdir=str(folder / "teacher"))
    # Labels for the first epoch, which is longer than a measurement and repeated if not.
    recipe = ("data.source=digits", f"train.batch_size={batch}", "eval.batch_size=5")
    recipe += ("augment.auto_augment=", "log.trackers=", "input.canvas=32", "train.total_epochs=1")
    recipe += ("schedule.warmup_epochs=0",)
    of = lambda *more: load("deit_distilled.py:ti", *recipe, *more)
    record = f"teacher.record={folder / 'labels'}"
    labels.make_labels(
        of(f"teacher.init={folder / 'teacher'}", "teacher.name=", record), epochs=(0, 0)
    )
    return {
        "no teacher": _stepper(of("loss.distillation=none")),
        "stored": _stepper(of(f"teacher.labels={folder / 'labels'}")),
    }


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
    batches = iter(experiment.train_batches())

    def step():
        nonlocal state
        batch = sharding.to_global(experiment.batch_sharding, next(batches))
        state, metrics = train_step(state, None, batch)
        return metrics

    for _ in range(2):
        step()
    return step


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
