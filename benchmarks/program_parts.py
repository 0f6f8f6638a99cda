"""Which part of a training step an operation belongs to, and what each part costs.

    estimate   microseconds an image by the TPU compiler's own estimate of each operation's cycles;
               of a kernel of this library, by its final schedule (`kernel_schedule.py`)
    floor      microseconds an image that no program with the same operations could go below:
               of each operation the longer of its arithmetic at the chip's peak and its bytes at
               the memory's bandwidth, which leaves out what stays on the chip
    HBM        megabytes an image that are read and written in the device's main memory
    operations fusions, products, copies and kernels that the compiler schedules; on a GPU each is
               a launch

The estimate is a model, and pessimistic where memory is the limit; nothing here was read off a
device.
"""

import collections
from collections.abc import Callable, Iterable
from typing import Any

import hlo_cost
import program_targets

from deit_jax.train.speed.parts import part_of


def weigh(
    operations: Iterable[hlo_cost.Operation],
    target: program_targets.Target,
    rows: float,
    kernel_cycles: Callable[[hlo_cost.Operation], float],
) -> dict[str, dict[str, float]]:
    """What each part costs an image of `rows` on a device, the dearest first, and `all`."""
    chip = target.chip
    peak, bandwidth = chip.peak_flops("bfloat16") or chip.peak_flops("float16"), chip.bandwidth
    parts: Any = collections.defaultdict(lambda: collections.Counter())
    for operation in operations:
        cycles = kernel_cycles(operation) if operation.kernel else operation.cycles
        floor = max(operation.flops / peak, operation.hbm / (bandwidth * 1e9)) if peak else 0.0
        cost = {
            "floor_us": 1e6 * floor / rows,
            "hbm_mb": operation.hbm / rows / 1e6,
            "gflop": operation.flops / rows / 1e9,
            "operations": 1,
        }
        if target.ghz:
            cost["estimate_us"] = cycles / (target.ghz * 1e3) / rows
        for name in (part_of(operation.opcode, operation.scope), "all"):
            parts[name].update(cost)
    key = "estimate_us" if target.ghz else "floor_us"
    ordered = sorted(parts, key=lambda name: -parts[name][key])
    return {name: {k: _rounded(v) for k, v in parts[name].items()} for name in ordered}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if isinstance(value, float) else value


_COLUMNS = (
    ("estimate_us", "estimate us", ".2f"),
    ("floor_us", "floor us", ".2f"),
    ("hbm_mb", "HBM MB", ".2f"),
    ("operations", "operations", ".0f"),
)


def table(parts: dict[str, dict[str, float]], before: dict[str, dict[str, float]]) -> str:
    """The parts as a table, an image each; beside another program's, `before -> now`."""
    shown = [column for column in _COLUMNS if any(column[0] in cost for cost in parts.values())]
    lines = [f"{'part':22s}" + "".join(f"{title:>22s}" for _, title, _ in shown)]
    for name in [*parts, *(name for name in before if name not in parts)]:
        cells = []
        for key, _, form in shown:
            now = format(parts.get(name, {}).get(key, 0.0), form)
            old = format(before.get(name, {}).get(key, 0.0), form)
            cells.append(f"{old} -> {now}" if before else now)
        lines.append(f"{name:22s}" + "".join(f"{cell:>22s}" for cell in cells))
    return "\n".join(lines)
