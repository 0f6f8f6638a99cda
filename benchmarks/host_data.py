"""What the data path costs on the host, and that its sequence is always the same.

    python benchmarks/host_data.py --data_dir=DIR --timm_python=PYTHON     # all of it
    python benchmarks/host_data.py --data_dir=DIR --what=cost,memory,sequence

cost: CPU-seconds (user and system, all threads) per augmented sample on one core, at repeats 3
and 1, against timm's `create_transform` on the same photos and core, in interleaved rounds; the
ratio of the medians is the figure. Ours ends with the uint8 canvas, the rest of the
augmentation runs on the device. Beside it the same canvases made by tf.data, per image.
memory: resident size along 50,000 samples.
sequence: the hash of the batches for 1, 2 and 8 threads, 1 and 2 processes, and after a start
at a random step.

Each measurement is a process of its own. Results go to --output as JSON.
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

import common
import numpy as np

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
        # Past the decoder's import, the first sight of each image size, the prefetch queue.
        for _ in range(6 * repeats):
            next(batches)
        steps = -(-samples // batch_size)
        start = time.process_time()
        for _ in range(steps):
            next(batches)
        return 1e3 * (time.process_time() - start) / (steps * batch_size)


def measure_tf_data(data_dir: str, samples: int) -> float:
    """CPU milliseconds per image of canvases made by tf.data, large images cut, not shrunk."""
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


def resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure_memory(data_dir: str, samples: int) -> dict:
    """Resident MiB after every tenth of the samples, and its slope."""
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


def measure_digest(data_dir: str, threads: int, start: int, steps: int, part: str) -> list[str]:
    """One hash a batch. `part` i/n: only the rows of process i of n, one hash a row."""
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


def child(arguments, core: int | None = None) -> object:
    """The JSON that a process of its own prints, pinned to `core`."""
    pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        arguments, preexec_fn=pin, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def ours(*call) -> list[str]:
    return [sys.executable, __file__, "--child", json.dumps(call)]


def cost(data_dir: str, timm_python: str | None, rounds: int, samples: int, core: int) -> dict:
    from deit_jax import data

    photos = data.open_data(name="imagenet2012", data_dir=data_dir).train
    rows: dict[str, list[float]] = {
        name: [] for name in ("ours repeats 3", "ours repeats 1", "timm", "tf.data canvases")
    }
    versions = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(photos.get(np.arange(len(photos)))[0]):
            pathlib.Path(folder, f"{i:04d}.jpg").write_bytes(image)
        for _ in range(rounds):
            for repeats in (3, 1):
                spent = child(ours("measure_cost", data_dir, repeats, samples), core)
                rows[f"ours repeats {repeats}"].append(round(spent, 3))
            spent = child(ours("measure_tf_data", data_dir, samples // 3), core)
            rows["tf.data canvases"].append(round(spent, 3))
            if timm_python:
                script = str(HERE / "host_data_timm.py")
                answer = child([timm_python, script, folder, str(samples)], core)
                rows["timm"].append(round(answer.pop("cpu_ms_per_sample"), 3))
                versions = answer
    result = {"cpu_ms_per_sample": rows, "reference": versions, "photos": len(photos)}
    if timm_python:
        timm = statistics.median(rows["timm"])
        for repeats in (3, 1):
            mine = statistics.median(rows[f"ours repeats {repeats}"])
            result[f"times_cheaper_at_repeats_{repeats}"] = round(timm / mine, 2)
    return result


def sequence(data_dir: str, steps: int) -> dict:
    """Hash of the batches of `steps` steps, and whether other ways to make them agree."""

    def digests(threads: int, start: int = 0, part: str = "0/1"):
        return child(ours("measure_digest", data_dir, threads, start, steps - start, part))

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
    parser.add_argument("--timm_python", help="interpreter with torch, timm, Pillow < 13")
    parser.add_argument("--what", default="cost,memory,sequence")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1152)
    parser.add_argument("--memory_samples", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--output", help="JSON file")
    flags = parser.parse_args()
    if flags.child:
        name, *call = json.loads(flags.child)
        print(json.dumps(globals()[name](*call)))
        return
    if not flags.data_dir:
        parser.error("--data_dir (or DEIT_JAX_TFDS) must name a tfds data_dir with imagenet2012")
    result = {}
    if "cost" in flags.what:
        result["cost"] = cost(
            flags.data_dir, flags.timm_python, flags.rounds, flags.samples, flags.core
        )
    if "memory" in flags.what:
        result["memory"] = child(ours("measure_memory", flags.data_dir, flags.memory_samples))
    if "sequence" in flags.what:
        result["sequence"] = sequence(flags.data_dir, flags.steps)
    # Last: jax starts threads, after which processes should not fork.
    common.report({"environment": common.environment()} | result, flags.output)


if __name__ == "__main__":
    main()
