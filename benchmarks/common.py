"""Shared by the benchmarks: interleaved rounds, worker processes, hardware and versions.

Only `environment` needs more than the standard library.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "timm", "triton")


def interleave(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """`rounds` results of every case, in the order A B A B ...

    If the machine slows down meanwhile, all cases slow down alike.
    """
    results: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            results[name].append(run())
    return results


def summary(values: list[float]) -> dict:
    """Median, minimum and maximum, and their distance in percent of the median."""
    median = statistics.median(values)
    spread = 100 * (max(values) - min(values)) / median if median else 0.0
    return {
        "median": _rounded(median),
        "least": _rounded(min(values)),
        "most": _rounded(max(values)),
        "spread_percent": round(spread, 1),
        "rounds": [_rounded(value) for value in values],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that are installed."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def environment() -> dict:
    """Hardware, versions, XLA flags and commit."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cpu": _processor(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def report(result: dict, output: str | None) -> None:
    """Prints the result as JSON and, if `output` is set, writes it there."""
    print(json.dumps(result, indent=1))
    if output:
        write(result, output)


def write(result: dict, output: str) -> None:
    """Writes the result as JSON to the file `output`."""
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


class WorkerFailed(RuntimeError):
    """A worker process ended or reported an error, which is the message."""


class Worker:
    """A subprocess that answers requests, one JSON object per line in both directions.

    The case is passed as JSON in the last argument; the first answer means that it is ready.
    """

    def __init__(self, command: list[str], case: dict, environment: dict[str, str]):
        self._process = subprocess.Popen(
            [*command, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        try:
            self.ready = self._read_answer()
        except WorkerFailed:
            self.close()
            raise

    def request(self, **request: int | str) -> dict:
        """Sends one request and returns the answer."""
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerFailed(f"the worker exited with status {self._process.wait()}") from None
        return self._read_answer()

    def _read_answer(self) -> dict:
        for line in self._process.stdout:
            # Libraries may print to the same stream.
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise WorkerFailed(answer["error"])
                return answer
        raise WorkerFailed(f"the worker exited with status {self._process.wait()}")

    def close(self) -> None:
        """Ends the process and waits until it has exited, so that its memory is free."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has exited already
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def serve(open_case: Callable[[dict], tuple[dict, Mapping[str, Callable[..., dict]]]]) -> None:
    """The worker's side: `open_case(case)` returns the first answer and the request handlers.

    A request is `{"do": name, ...}`; its other entries are keyword arguments of handler `name`.
    """
    try:
        ready, handlers = open_case(json.loads(sys.argv[-1]))
        print(json.dumps(ready), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(handlers[request.pop("do")](**request)), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {str(error)[:2000]}"}), flush=True)
        raise SystemExit(1) from error
