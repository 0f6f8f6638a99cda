"""What a compiled program exchanges between devices, read from its HLO text."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

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


def collectives(text: str) -> list[Collective]:
    """All collectives of a program, in the order of its text.

    In a program of several TPU slices what goes to the others is a `send` to the host, whose
    attributes say which collective it is a part of.
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
        arrays = _arrays(result)
        if kind == "reduce-scatter":
            arrays = [(dtype, (*shape, _group_size(rest))) for dtype, shape in arrays]
        elif network == "dcn":
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
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(iota[1])
    axes = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes)
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1])) if axes else {}
    return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2])) if axes else 1


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
