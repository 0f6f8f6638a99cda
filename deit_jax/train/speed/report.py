"""What a measurement was made on, and its results as a table."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import jax

from deit_jax import storage


def hardware() -> dict[str, Any]:
    """Devices of this process, driver, processor, and flags of XLA, as JSON values."""
    devices = jax.local_devices()
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "driver": _driver(),
        "cpu": _processor(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _driver() -> str | None:
    """Of NVIDIA's GPUs; None without them."""
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0]


def _processor() -> str:
    try:
        text = storage.path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else platform.processor()


def table(results: Sequence[dict[str, Any]]) -> str:
    """One line for each result: medians with quartiles."""
    names = [f"{r['model']} ({r['by']})" if r["by"] != "deit_jax" else r["model"] for r in results]
    wide = max([len(name) for name in names], default=5)
    head = f"{'model':{wide}s} {'what':9s} {'batch':>5s}  {'images/s [quartiles]':>26s}"
    lines = [f"{head}  {'latency ms [quartiles]':>28s}  {'memory GiB':>10s}"]
    for name, r in zip(names, results, strict=True):
        memory = "-" if r["memory_gib"] is None else f"{r['memory_gib']:.3g}"
        counted = "*" if r["memory_by"] == "compiled program" else " "
        lines.append(
            f"{name:{wide}s} {r['kind']:9s} {r['batch_size']:>5d}  "
            f"{_spread(r['images_per_s']):>26s}  {_spread(r['latency_ms']):>28s}  "
            f"{memory:>9s}{counted}"
        )
    if any(r["memory_by"] == "compiled program" for r in results):
        lines.append("* the compiled program's plan, not counted on the device")
    return "\n".join(lines)


def _spread(summary: dict[str, Any]) -> str:
    low, high = summary["quartiles"]
    return f"{summary['median']:.4g} [{low:.4g}, {high:.4g}]"
