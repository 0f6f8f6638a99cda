"""Host CPU time and memory of the data pipeline, and whether its batches are reproducible.

    python benchmarks/host_data.py --data_dir=DIR --timm_python=PYTHON     # everything
    python benchmarks/host_data.py --data_dir=DIR --what=cost,lock,memory,sequence,start
    python benchmarks/host_data.py --data_dir=DIR --before=CHECKOUT         # beside another version

cost: CPU-seconds (user and system, all threads) per augmented sample on one core, at repeats 3
and 1, against timm's `create_transform` on the same photos and core, in interleaved rounds; the
result is the ratio of the medians. This library's host work ends with the uint8 canvas; the rest
of the augmentation runs on the device. For comparison, the same canvases made by tf.data, per
image.
lock: milliseconds that the interpreter's lock is held per image (repeats 1, one thread),
sampled from outside the process; a process cannot feed faster than one image in that time.
memory: resident set size over 50,000 samples.
sequence: the hash of the batches with 1, 2 and 8 threads, with 1 and 2 processes, and started at
a random step.
start: seconds from opening a data set of ImageNet's shape (1,281,167 records in 1,024 files, tiny
images, written to a temporary folder) to the first batch, with no index of the files and with one;
imports are not included.

Each measurement runs in a separate process. Results are written to --output as JSON; with --add
the rounds are added to those that the file has, so that they can be spread over hours and kept
to the minutes in which the machine is quiet.
"""

import argparse
import hashlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import common
import interpreter_lock
import numpy as np
from imagenet_shape import measure_start, write_imagenet_shape  # noqa: F401 - called by name

from deit_jax.train.speed.rounds import interleave

HERE = pathlib.Path(__file__).resolve().parent
CANVAS = 512


def open_photos(data_dir: str):
    from deit_jax import data

    return data, data.open_data(name="imagenet2012", data_dir=data_dir).train


def measure_cost(data_dir: str, repeats: int, samples: int) -> float:
    """CPU milliseconds per augmented sample."""
    data, photos = open_photos(data_dir)
    batch_size = 96
    with data.train_batches(
        photos, batch_size=batch_size, repeats=repeats, canvas=CANVAS, threads=1
    ) as batches:
        # Warm-up: the decoder's import, the first image of each size, the prefetch queue.
        for _ in range(6 * repeats):
            next(batches)
        steps = -(-samples // batch_size)
        start = time.process_time()
        for _ in range(steps):
            next(batches)
        return 1e3 * (time.process_time() - start) / (steps * batch_size)


def measure_tf_data(data_dir: str, samples: int) -> float:
    """CPU milliseconds per image of canvases made by tf.data, which crops large images."""
    data, photos = open_photos(data_dir)
    from deit_jax.data._tensorflow import tensorflow

    tf = tensorflow()
    images = photos.get(np.arange(len(photos)))[0]

    def canvas(encoded):
        image = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        image = image[:CANVAS, :CANVAS]
        height, width = tf.unstack(tf.shape(image)[:2])
        return tf.pad(image, [[0, CANVAS - height], [0, CANVAS - width], [0, 0]])

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    dataset = tf.data.Dataset.from_tensor_slices(images).repeat().with_options(options)
    dataset = dataset.map(canvas, num_parallel_calls=1, deterministic=True).batch(32)
    batches = dataset.as_numpy_iterator()
    for _ in range(12):
        next(batches)
    steps = -(-samples // 32)
    start = time.process_time()
    for _ in range(steps):
        next(batches)
    return 1e3 * (time.process_time() - start) / (steps * 32)


# Uses nothing that versions differ in.
LOCK_PROGRAM = f"""
import ctypes, sys
from deit_jax import data
photos = data.open_data(name="imagenet2012", data_dir=sys.argv[1]).train
print({interpreter_lock.ADDRESS}, flush=True)
steps = int(sys.argv[2]) // 96
with data.train_batches(photos, 96, canvas=512, threads=1) as batches:
    for _ in range(6):
        next(batches)
    print("begins", flush=True)
    sys.stdin.readline()
    for _ in range(steps):
        next(batches)
print("ends", flush=True)
sys.stdin.readline()
"""


def lock_ms(root: str, offset: int, data_dir: str, samples: int) -> float:
    """Milliseconds of lock per image of the version of the library in `root`."""
    command = [sys.executable, "-c", LOCK_PROGRAM, data_dir, str(samples)]
    environment = os.environ | {"PYTHONPATH": root}
    subject = interpreter_lock.Subject(command, env=environment, cwd=root)
    subject.read_line()
    subject.tell("go")
    start = time.perf_counter()
    share, _ = subject.sample(offset)
    seconds = time.perf_counter() - start
    subject.close()
    return round(1e3 * share * seconds / (samples // 96 * 96), 4)


def lock(data_dir: str, before: str | None, rounds: int, samples: int) -> dict:
    offset, calibration = interpreter_lock.calibrate()
    roots = {"ours": str(HERE.parent)} | ({"before": before} if before else {})
    rows = interleave(
        {name: lambda at=at: lock_ms(at, offset, data_dir, samples) for name, at in roots.items()},
        rounds,
    )
    return {"lock_ms_per_image": rows, "share_measured_of_a_process_at_0.3": calibration}


def start(template: str, rounds: int) -> dict:
    """Seconds to the first batch of a data set of ImageNet's shape: cold, then warm."""
    with tempfile.TemporaryDirectory() as folder:
        data_dir = pathlib.Path(folder, "data")
        run_process(own_command("write_imagenet_shape", str(data_dir), template))
        rows: dict[str, list[float]] = {"cold": [], "warm": []}
        for i in range(rounds):
            os.environ["XDG_CACHE_HOME"] = os.path.join(folder, f"cache{i}")
            for name in rows:
                seconds = run_process(own_command("measure_start", str(data_dir)))
                rows[name].append(round(seconds, 2))
        del os.environ["XDG_CACHE_HOME"]
    return {"seconds_to_first_batch": rows}


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_memory(data_dir: str, samples: int) -> dict:
    """Resident MiB after every tenth of the samples, and the slope."""
    data, photos = open_photos(data_dir)
    batch_size = 96
    points = []
    steps = samples // batch_size
    with data.train_batches(photos, batch_size=batch_size, repeats=3, canvas=CANVAS) as batches:
        for step in range(steps + 1):
            next(batches)
            if step % (steps // 10) == 0:
                points.append((step * batch_size, round(resident_mib(), 1)))
    x, y = np.array(points[2:], float).T
    slope = np.polyfit(x, y, 1)[0]
    return {
        "samples": samples,
        "resident_mib": points,
        "slope_kib_per_1000_samples": round(slope * 1024 * 1000, 1),
    }


def measure_digests(data_dir: str, threads: int, start: int, steps: int, part: str) -> list[str]:
    """One hash per canvas of the batches of `steps` steps; `part` i/n: process i of n."""
    data, photos = open_photos(data_dir)
    sizes = {"batch_size": 96, "repeats": 3, "mix_group": 32, "canvas": CANVAS, "seed": 1}
    i, n = map(int, part.split("/"))
    count = data.canvas_count(96, 3, 8)
    rows = range(i * count // n, (i + 1) * count // n)
    digests = []
    with data.train_batches(
        photos, **sizes, threads=threads, start_step=start, device_count=8, rows=rows
    ) as batches:
        for _ in range(steps):
            batch = next(batches)
            for row in range(len(rows)):
                content = [batch[k][row].tobytes() for k in ("canvas", "size", "label", "index")]
                content.append(batch["canvas_index"].tobytes())
                digests.append(hashlib.sha256(b"".join(content)).hexdigest())
    return digests


def run_process(arguments: list[str], core: int | None = None, root: str | None = None) -> Any:
    """The JSON that a command prints on its last line.

    With `core`, pinned to that core; `root`: of the library, when it is another version's.
    """
    pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
    environment = os.environ | {"PYTHONPATH": root or str(HERE.parent)}
    done = subprocess.run(
        arguments, preexec_fn=pin, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def own_command(*call, root: str | None = None) -> list[str]:
    """The command that calls a function of this file, or of its other version in `root`."""
    script = __file__ if root is None else os.path.join(root, "benchmarks", "host_data.py")
    return [sys.executable, script, "--child", json.dumps(call)]


def cost(
    data_dir: str, timm_python: str | None, before: str | None, rounds: int, samples: int, core: int
) -> dict:
    from deit_jax import data

    photos = data.open_data(name="imagenet2012", data_dir=data_dir).train
    roots = {"ours": None} | ({"before": before} if before else {})
    cases = [f"{name} repeats {repeats}" for repeats in (3, 1) for name in roots]
    rows: dict[str, list[float]] = {name: [] for name in (*cases, "timm", "tf.data canvases")}
    versions = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(photos.get(np.arange(len(photos)))[0]):
            pathlib.Path(folder, f"{i:04d}.jpg").write_bytes(image)
        for _ in range(rounds):
            for repeats in (3, 1):
                for name, root in roots.items():
                    call = own_command("measure_cost", data_dir, repeats, samples, root=root)
                    ms = run_process(call, core, root)
                    rows[f"{name} repeats {repeats}"].append(round(ms, 3))
            ms = run_process(own_command("measure_tf_data", data_dir, samples // 3), core)
            rows["tf.data canvases"].append(round(ms, 3))
            if timm_python:
                script = str(HERE / "host_data_timm.py")
                answer = run_process([timm_python, script, folder, str(samples)], core)
                rows["timm"].append(round(answer.pop("cpu_ms_per_sample"), 3))
                versions = answer
    return {"cpu_ms_per_sample": rows, "reference": versions, "photos": len(photos)}


def with_ratios(cost: dict) -> dict:
    """The result of `cost` with how many times cheaper the medians are than timm's."""
    medians = {name: statistics.median(ms) for name, ms in cost["cpu_ms_per_sample"].items() if ms}
    for repeats in (3, 1) if "timm" in medians else ():
        ratio = medians["timm"] / medians[f"ours repeats {repeats}"]
        cost[f"times_cheaper_at_repeats_{repeats}"] = round(ratio, 2)
    return cost


def added(old: Any, new: Any) -> Any:
    """Two results as one: of rounds all, of anything else the new one."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: added(old.get(key), value) for key, value in new.items()}
    numbers = lambda x: isinstance(x, list) and all(isinstance(n, float) for n in x)
    return old + new if numbers(old) and numbers(new) else new


def sequence(data_dir: str, steps: int) -> dict:
    """Hash of the batches of `steps` steps, and whether they are always the same."""

    def digests(threads: int, start: int = 0, part: str = "0/1"):
        return run_process(
            own_command("measure_digests", data_dir, threads, start, steps - start, part)
        )

    base = digests(1)
    per_step = len(base) // steps
    equal = {f"{threads} threads": base == digests(threads) for threads in (2, 8)}
    parts = [digests(2, part=f"{i}/2") for i in range(2)]
    half = per_step // 2
    joined = [
        digest
        for step in range(steps)
        for part in parts
        for digest in part[step * half : (step + 1) * half]
    ]
    equal["2 processes"] = joined == base
    start = int(np.random.default_rng().integers(1, steps))
    equal[f"after a start at step {start}"] = digests(2, start) == base[start * per_step :]
    total = hashlib.sha256("".join(base).encode()).hexdigest()[:16]
    return {"steps": steps, "hash": total, "equal": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--data_dir", default=os.environ.get("DEIT_JAX_TFDS"))
    parser.add_argument("--timm_python", help="interpreter with torch, timm and Pillow < 13")
    parser.add_argument("--what", default="cost,lock,memory,sequence,start")
    parser.add_argument("--before", help="a checkout of another version, to measure beside this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1152)
    parser.add_argument("--memory_samples", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--add", action="store_true", help="to the rounds that the file has")
    flags = parser.parse_args()
    if flags.child:
        name, *call = json.loads(flags.child)
        print(json.dumps(globals()[name](*call)))
        return
    if not flags.data_dir:
        parser.error("--data_dir (or $DEIT_JAX_TFDS) must be a tfds data_dir with imagenet2012")
    result = {}
    if "cost" in flags.what:
        result["cost"] = cost(
            flags.data_dir, flags.timm_python, flags.before, flags.rounds, flags.samples, flags.core
        )
    if "lock" in flags.what:
        result["lock"] = lock(flags.data_dir, flags.before, flags.rounds, flags.samples)
    if "memory" in flags.what:
        result["memory"] = run_process(
            own_command("measure_memory", flags.data_dir, flags.memory_samples)
        )
    if "sequence" in flags.what:
        result["sequence"] = sequence(flags.data_dir, flags.steps)
    if "start" in flags.what:
        result["start"] = start(flags.data_dir, flags.rounds)
    # Last, because jax starts threads, and a process with threads should not fork.
    result = {"environment": common.environment()} | result
    if flags.add and os.path.exists(flags.output):
        result = added(json.loads(pathlib.Path(flags.output).read_text()), result)
    if "cost" in result:
        with_ratios(result["cost"])
    common.report(result, flags.output)


if __name__ == "__main__":
    main()
