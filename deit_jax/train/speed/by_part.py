"""A trace of a program on the device, and what each part of the model took in it."""

import collections
import re
from collections.abc import Iterator
from typing import Any

import jax

from deit_jax import storage
from deit_jax.train.speed.parts import operations, part_of
from deit_jax.train.speed.rounds import rounded

CALLS = 3
# They contain other operations, which are in the trace too.
_CONTROL = ("while", "conditional", "call")


def record(call: Any, folder: storage.Path) -> None:
    """Traces `CALLS` calls, for TensorBoard, XProf or Perfetto.

    Raises:
      OSError: it cannot be written.
    """
    with storage.local_output(folder) as target:
        with jax.profiler.trace(str(target)):
            for _ in range(CALLS):
                out = call()
            jax.block_until_ready(out)  # pyright: ignore[reportPossiblyUnboundVariable]


def read(folder: storage.Path, text: str, batch_size: int) -> dict[str, dict[str, float]]:
    """Microseconds an image, share and number of operations of each part, the dearest first.

    Times are of the operations, those of a device's streams and of a CPU's threads added up. Empty
    where the trace names no operation of the program.

    Args:
      folder: of `record`.
      text: of the compiled program, which says which part an operation belongs to.
    """
    known = operations(text)
    parts: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for file in storage.files_under(folder):
        if not file.name.endswith(".xplane.pb"):
            continue
        data = jax.profiler.ProfileData.from_serialized_xspace(file.read_bytes())
        for name, nanoseconds in _events(data):
            opcode, scope = known.get(name, ("", ""))
            if opcode and opcode not in _CONTROL:
                of_part = parts[part_of(opcode, scope)]
                of_part[0] += nanoseconds
                of_part[1] += 1
    total = sum(nanoseconds for nanoseconds, _ in parts.values())
    return {
        part: {
            "us_per_image": rounded(nanoseconds / 1e3 / CALLS / batch_size),
            "share": round(nanoseconds / total, 4),
            "operations": round(count / CALLS),
        }
        for part, (nanoseconds, count) in sorted(parts.items(), key=lambda item: -item[1][0])
    }


def _events(data: Any) -> Iterator[tuple[str, float]]:
    """(name of the operation, nanoseconds) of what the devices did."""
    for plane in data.planes:
        tpu = "TPU" in plane.name
        for line in plane.lines:
            # A TPU's other lines have steps, modules and transfers.
            if tpu and line.name != "XLA Ops":
                continue
            for event in line.events:
                if tpu:
                    # The text of the whole operation, or its name.
                    if name := re.match(r"%?([\w.<>-]+)", event.name):
                        yield name[1], event.duration_ns
                elif not event.name.startswith("end: "):
                    operation = dict(event.stats).get("hlo_op")
                    if operation is not None:
                        yield str(operation), event.duration_ns


def table(parts: dict[str, dict[str, float]]) -> str:
    """For people."""
    lines = [f"  {'part':22s}{'us an image':>12s}{'share':>8s}{'operations':>12s}"]
    for part, cost in parts.items():
        lines.append(
            f"  {part:22s}{cost['us_per_image']:>12.5g}{cost['share']:>8.1%}"
            f"{cost['operations']:>12,}"
        )
    return "\n".join(lines)
