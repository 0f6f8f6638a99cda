"""What a compiled program exchanges between devices, read from its HLO text."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "s16": 2, "u16": 2}
_OPS = "all-reduce all-gather reduce-scatter collective-permute all-to-all ragged-all-to-all"
_INSTRUCTION = re.compile(
    rf"^\s*(?:ROOT )?%?(\S+) = (.*?) ((?:{'|'.join([*_OPS.split(), 'send'])})(?:-start)?)\((.*)$"
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLS = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|called_computations)="
    r"(\{[^}]*\}|%?[\w.-]+)"
)


class Collective(NamedTuple):
    """One exchange between devices in a step.

    Attributes:
      op: `all-reduce`, `all-gather`, `reduce-scatter`, `collective-permute`, `all-to-all`.
      arrays: (dtype, shape) of what a device has afterwards; of a reduce-scatter and of what
        goes to another slice, before.
      network: `ici` within a slice, `dcn` between slices.
      looped: whether it is in a loop, and so may run more than once.
    """

    op: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    network: str
    looped: bool

    @property
    def elements(self) -> int:
        return sum(math.prod(shape) for _, shape in self.arrays)

    @property
    def nbytes(self) -> int:
        return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in self.arrays)


def collectives(text: str, slice_size: int | None = None) -> list[Collective]:
    """All collectives of a program, in the order of its text.

    In a program of several TPU slices what goes to the others is a `send` to the host, whose
    attributes say which collective it is a part of. Before the compiler has made it so,
    `slice_size` tells, the devices of a slice.
    """
    looped = _in_loops(text)
    found, computation = [], ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            computation = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        _, result, op, rest = match.groups()
        network, kind = "ici", op.removesuffix("-start")
        if kind == "send":
            transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', rest)
            if not transfer:
                continue
            network, kind = "dcn", transfer[1].lower().replace("_", "-")
        elif slice_size and any(len({i // slice_size for i in g}) > 1 for g in _groups(rest)):
            network = "dcn"
        arrays = _arrays(result)
        if kind == "reduce-scatter":
            arrays = [(dtype, (*shape, _group_size(rest))) for dtype, shape in arrays]
        elif op == "send":
            arrays = arrays[:1]
        elif op.endswith("-start") and result.startswith("("):
            # (operands, results, contexts); an all-reduce has its results alone.
            data = [array for array in arrays if array != ("u32", ())]
            arrays = data if kind == "all-reduce" else data[len(data) // 2 :]
        found.append(Collective(kind, tuple(arrays), network, computation in looped))
    return found


def _arrays(text: str) -> list[tuple[str, tuple[int, ...]]]:
    shapes = ((dtype, sides) for dtype, sides in _ARRAY.findall(text) if dtype in BYTES)
    return [(dtype, tuple(int(n) for n in sides.split(",") if n)) for dtype, sides in shapes]


def _group_size(attributes: str) -> int:
    return len(_groups(attributes)[0])


def _groups(attributes: str) -> list[list[int]]:
    """Devices that exchange with each other, in the notations of HLO's text.

    {{0,1},{2,3}} of groups or of pairs, [2,2]<=[4] or [2,2]<=[2,2]T(1,0), and
    mesh['a'=2,'b'=2] {'b'}, where 'a':(1)2 is a part of an axis.
    """
    found = re.search(r"(?:replica_groups|source_target_pairs)=(.*)", attributes)
    groups = found[1] if found else ""
    if listed := re.match(r"\{(\{[\d,]+\}(?:,\{[\d,]+\})*)\}", groups):
        return [[int(n) for n in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed[1])]
    if iota := re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups):
        sides = [int(n) for n in iota[3].split(",")]
        order = [int(n) for n in (iota[4] or ",".join(map(str, range(len(sides))))).split(",")]
        devices = np.arange(math.prod(sides)).reshape(sides).transpose(order)
        return devices.reshape(int(iota[1]), int(iota[2])).tolist()
    axes = re.match(r"mesh\[(.*?)\] \{(.*?)\}", groups)
    if not axes:
        raise ValueError(f"unknown notation of devices: {attributes[:200]}")
    sizes = [(name, int(n)) for name, n in re.findall(r"'(\w+)'=(\d+)", axes[1])]
    parts = {name: (1, n, 1) for name, n in sizes}
    used = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes[2])
    for name, before, n in used:
        if n:
            inner = dict(sizes)[name] // int(before) // int(n)
            parts[name] = (int(before), int(n), inner)
    devices = np.arange(math.prod(n for _, n in sizes))
    devices = devices.reshape([side for name, _ in sizes for side in parts[name]])
    names = [name for name, _ in sizes]
    together = [3 * names.index(name) + 1 for name, *_ in used]
    devices = np.moveaxis(devices, together, range(-len(together), 0))
    return devices.reshape(-1, math.prod(parts[name][1] for name, *_ in used)).tolist()


def _in_loops(text: str) -> set[str]:
    """Names of the computations that a loop runs."""
    calls: dict[str, set[str]] = {}
    bodies: set[str] = set()
    computation = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            computation = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
        for names in _CALLS.findall(line):
            calls.setdefault(computation, set()).update(re.findall(r"[\w.-]+", names))
        if body := re.search(r"\bbody=%?([\w.-]+)", line):
            bodies.add(body[1])
    return reachable(bodies, calls)


def reachable(start: Iterable[str], calls: dict[str, set[str]]) -> set[str]:
    """`start` and all that they call."""
    found, left = set(), list(start)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += calls.get(name, ())
    return found
