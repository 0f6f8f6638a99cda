"""Training steps of DeiT, here and in timm: images/s, MFU, memory, time to the first step.

    python benchmarks/train_step.py --output=train_step.json
    python benchmarks/train_step.py --cases=b:224:256 --timm_python=PYTHON --ema=0
    python benchmarks/train_step.py --cases=b:224:256 --teacher=regnety_160 --timm_python=PYTHON
    python benchmarks/train_step.py --cases=b:224:256 --input=recipe    # with augmentation

A case is size:pixels:batch. Protocol: random uint8 images on the device, normalized inside the
step; bf16 compute, f32 parameters; soft-target cross-entropy, AdamW, stochastic depth 0.1,
without and with EMA. The implementations (this library with XLA's and with cuDNN's attention;
timm under torch.compile, if PYTHON has torch and timm) run in separate processes. Each process is
started once with an empty compilation cache (cold) and once more with the cache filled (warm).
The warm one is measured: warm-up steps, then rounds interleaved with those of the others; a round
is a number of 8192 x 8192 bf16 matmuls, then the timed steps with one synchronization at the end.
If the processes do not fit into memory together, --one_at_a_time runs them one after the other.
Memory per image is what the step needs beyond parameters, optimizer state, EMA and teacher,
divided by the batch size.
"""

import argparse
import itertools
import os
import pathlib
import sys
import tempfile

import common

from deit_jax.train.speed import workers
from deit_jax.train.speed.rounds import summary

HERE = common.ROOT / "benchmarks"
CASES = "ti:224:256,ti:224:1024,s:224:256,s:224:1024,b:224:256,b:224:1024,s:384:256,b:384:256"


def read_cases(flags: argparse.Namespace) -> list[dict]:
    """Every case with and without EMA, in the form that the workers read."""
    cases = []
    for text, ema in itertools.product(flags.cases.split(","), flags.ema.split(",")):
        size, image_size, batch_size = text.split(":")
        cases.append(
            {
                "size": size,
                "image_size": int(image_size),
                "batch_size": int(batch_size),
                "ema": bool(int(ema)),
                "teacher": flags.teacher,
                "dtype": flags.dtype,
                "input": flags.input,
                "canvas": flags.canvas,
                "compile": flags.timm_compile,
            }
        )
    return cases


def worker_commands(flags: argparse.Namespace, case: dict) -> dict[str, tuple[list[str], dict]]:
    """Command and case of every implementation."""
    commands = {}
    for attention in flags.attention.split(","):
        command = [sys.executable, str(HERE / "train_step_jax.py")]
        commands[f"ours {attention}"] = command, case | {"attention": attention}
    if flags.timm_python and flags.input == "image":
        commands["timm"] = [flags.timm_python, str(HERE / "train_step_timm.py")], case
    return commands


def start(
    command: list[str], case: dict, cache: pathlib.Path, warm: bool
) -> tuple[workers.Worker, dict]:
    """A worker that is ready, and its start-up times; `warm` starts it twice."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        # The processes share the device, so none may reserve its memory in advance.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    times = {}
    for kind in ("cold", "warm") if warm else ("cold",):
        worker = workers.Worker(command, case, environment)
        times[kind] = {key: x for key, x in worker.ready.items() if key.endswith("_s")}
        if warm and kind == "cold":
            worker.close()
    return worker, times


def measure_round(worker: workers.Worker, flags: argparse.Namespace) -> tuple[float, float]:
    """(seconds per step, FLOP/s of the matmul)."""
    matmul = worker.request(do="calibrate", side=flags.matmul_side, count=flags.matmuls)["flops"]
    return worker.request(do="run", steps=flags.steps)["seconds"] / flags.steps, matmul


def summarize(
    rounds: list[tuple], case: dict, ready: dict, memory: dict, flops: float | None
) -> dict:
    """Throughput, memory and utilization of one implementation, from its rounds."""
    batch = case["batch_size"]
    seconds = summary([second for second, _ in rounds])
    result = {
        "images_per_s": summary([batch / second for second, _ in rounds]),
        "step_ms": 1e3 * seconds["median"],
        "matmul_tflops": summary([matmul / 1e12 for _, matmul in rounds]),
        "loss_of_first_step": ready["loss"],
        "memory": memory,
    }
    peak = memory["peak_gib"] or memory["program_gib"]
    if peak:
        result["mib_per_image"] = round(1024 * (peak - memory["state_gib"]) / batch, 3)
    if flops:
        shares = summary([flops / second / matmul for second, matmul in rounds])
        result["tflops"] = round(flops / seconds["median"] / 1e12, 2)
        result["share_of_matmul"] = shares["median"]
    if flops and ready.get("peak_flops"):
        result["share_of_peak"] = round(flops / seconds["median"] / ready["peak_flops"], 4)
    return result


def measure(case: dict, flags: argparse.Namespace, scratch: pathlib.Path) -> dict:
    """Measures all implementations of one case; one that fails is reported with its error.

    scratch: an empty folder for the compilation caches.
    """
    results: dict[str, dict] = {}
    opened: dict[str, workers.Worker] = {}
    rounds: dict[str, list[tuple[float, float]]] = {}
    flops = None
    commands = worker_commands(flags, case)
    groups = [[name] for name in commands] if flags.one_at_a_time else [list(commands)]
    for group in groups:
        for name in group:
            try:
                cache = scratch / name.replace(" ", "_")
                opened[name], times = start(*commands[name], cache, flags.warm_start)
                results[name] = {"first_step": times}
                opened[name].request(do="run", steps=flags.warmup)
                flops = flops or opened[name].ready.get("flops_per_step")
                rounds[name] = []
            except workers.WorkerFailed as error:
                results[name] = {"error": str(error)}
        for name in [*group] * flags.rounds:
            if "error" in results[name]:
                continue
            try:
                rounds[name].append(measure_round(opened[name], flags))
            except workers.WorkerFailed as error:
                results[name] = {"error": str(error)}
        for name in group:
            worker = opened.get(name)
            if worker is None:
                continue
            try:
                if "error" not in results[name]:
                    memory = worker.request(do="memory")
                    results[name] |= summarize(rounds[name], case, worker.ready, memory, flops)
                    results[name] |= {
                        key: worker.ready[key]
                        for key in ("versions", "environment", "device")
                        if key in worker.ready
                    }
            except workers.WorkerFailed as error:
                results[name] = {"error": str(error)}
            worker.close()
    return {"case": case, "flops_per_step": flops, "sides": results}


def line(case: dict, name: str, result: dict) -> str:
    """One line of terminal output."""
    label = (
        f"{case['size']}:{case['image_size']}:{case['batch_size']} ema {int(case['ema'])} {name}"
    )
    if "error" in result:
        return f"{label:36s} {result['error'][:120]}"
    share = result.get("share_of_peak")
    return (
        f"{label:36s} {result['images_per_s']['median']:>9.1f} images/s"
        f"  {result.get('tflops', 0):>7.2f} TFLOP/s"
        f"  of peak {'-' if share is None else f'{share:.1%}'}"
        f"  of matmul {result.get('share_of_matmul', 0):.1%}"
        f"  MiB/image {result.get('mib_per_image', '-')}"
    )


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", default=CASES, help="size:pixels:batch, comma separated")
    parser.add_argument("--attention", default="xla,cudnn")
    parser.add_argument("--ema", default="0,1", help="0: without EMA, 1: with EMA")
    parser.add_argument("--teacher", default="", help="model to distill from, such as regnety_160")
    parser.add_argument("--input", default="image", choices=["image", "recipe"])
    parser.add_argument("--canvas", type=int, default=512, help="canvas side with --input=recipe")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--timm_python", help="interpreter with torch and timm")
    parser.add_argument("--timm_compile", default="default", help="torch.compile's mode, or none")
    parser.add_argument("--warmup", type=int, default=20, help="steps before the rounds")
    parser.add_argument("--steps", type=int, default=50, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--matmul_side", type=int, default=8192)
    parser.add_argument("--matmuls", type=int, default=50, help="matmuls per round")
    parser.add_argument("--warm_start", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--one_at_a_time", action="store_true")
    parser.add_argument("--output", help="JSON file")
    return parser.parse_args()


def main() -> None:
    flags = parse_flags()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    measured = []
    for case in read_cases(flags):
        with tempfile.TemporaryDirectory() as scratch:
            measured.append(measure(case, flags, pathlib.Path(scratch)))
        for name, result in measured[-1]["sides"].items():
            print(line(case, name, result), file=sys.stderr, flush=True)
        # Written after every case, in case a later one ends the program.
        result = {"what": "training steps", "settings": vars(flags), "cases": measured}
        if flags.output:
            common.write(result, flags.output)
    common.report(result, flags.output)


if __name__ == "__main__":
    main()
