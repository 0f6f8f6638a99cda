"""What a compiled program computes and moves, operation by operation, read from its HLO text.

Each operation that the compiler scheduled is counted once: a loop's body too, however often it
runs. A TPU's compiler writes beside an operation how many cycles it takes it for.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import hlo

_SKIPPED = set(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id "
    "optimization-barrier domain add-dependency send-done recv recv-done".split()
)
_CONTROL = {"while": ("body",), "conditional": ("branch_computations",), "call": ("to_apply",)}
_SLICES = ("slice", "dynamic-slice", "gather")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_HEAD = re.compile(r"^\s*(?:ROOT )?%?([\w.<>-]+) = ")


class Instruction(NamedTuple):
    """A line of HLO text: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool
    inside: str  # what the parentheses hold

    @property
    def scope(self) -> str:
        """The path of functions and modules that made it, empty where the compiler did."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    def called(self, *names: str) -> list[str]:
        """Names of the computations among the attributes `names`."""
        found = re.findall(rf"(?:{'|'.join(names)})=(\{{[^}}]*\}}|%?[\w.-]+)", self.attributes)
        return [name for text in found for name in re.findall(r"[\w.-]+", text)]


class Operation(NamedTuple):
    """One scheduled operation.

    Attributes:
      name, opcode, scope: see `Instruction`; of a fusion without a scope, that of its parts.
      cycles: the compiler's estimate, 0 where it gives none.
      flops: of matrix products and convolutions, two for a multiply-accumulate.
      hbm: bytes read from and written to the device's main memory.
      kernel: of a kernel of our own, (dtype, shape) of its operands; None of all others.
    """

    name: str
    opcode: str
    scope: str
    cycles: int
    flops: float
    hbm: float
    kernel: tuple[tuple[str, tuple[int, ...]], ...] | None


def arrays(text: str) -> list[tuple[str, tuple[int, ...], bool]]:
    """(dtype, shape, in the main memory) of each array of a type; TPU's `S(1)` is on the chip."""
    found = []
    for dtype, sides, layout in _ARRAY.findall(text):
        if dtype in hlo.BYTES:
            shape = tuple(int(n) for n in sides.split(",") if n)
            found.append((dtype, shape, not re.search(r"S\([1-9]", layout)))
    return found


def _bytes(text: str) -> list[tuple[float, bool]]:
    return [(float(hlo.BYTES[d] * math.prod(s)), main) for d, s, main in arrays(text)]


def _main_bytes(text: str) -> float:
    return sum(size for size, main in _bytes(text) if main)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions by computation, and the name of the computation that is run."""
    computations: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{") and "->" in line:
            current = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
            entry = current if line.startswith("ENTRY ") else entry
            computations[current] = []
        elif current and (instruction := _instruction(line)):
            computations[current].append(instruction)
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head = _HEAD.match(line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    inside = rest[start + 1 : end]
    operands = tuple(re.findall(r"%([\w.<>-]+)", inside))
    root = line.lstrip().startswith("ROOT ")
    return Instruction(head[1], kind, rest[:start], operands, rest[end + 1 :], root, inside)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` closes."""
    depth = 0
    for place in re.compile(r"[()]").finditer(text, start):
        depth += 1 if place[0] == "(" else -1
        if not depth:
            return place.start()
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def operations(text: str) -> list[Operation]:
    """The scheduled operations of a program, those of loops and branches among them."""
    computations, entry = parse(text)
    weigh = _Weigher(computations)
    return [weigh(i, types) for i, types in _scheduled(computations, entry)]


def _scheduled(
    computations: dict[str, list[Instruction]], name: str
) -> Iterator[tuple[Instruction, dict[str, str]]]:
    types = {i.name: i.type for i in computations.get(name, [])}
    for instruction in computations.get(name, []):
        opcode = instruction.opcode
        if opcode in _CONTROL:
            for called in instruction.called(*_CONTROL[opcode]):
                yield from _scheduled(computations, called)
        elif opcode not in _SKIPPED and not opcode.endswith("-done"):
            yield instruction, types


class _Weigher:
    """Weighs instructions of a program."""

    def __init__(self, computations: dict[str, list[Instruction]]):
        self._computations = computations
        self.flops_of = functools.cache(self._flops_of)

    def __call__(self, i: Instruction, types: dict[str, str]) -> Operation:
        cycles = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
        kernel = None
        if i.opcode == "custom-call" and '"tpu_custom_call"' in i.attributes:
            of = [arrays(types.get(name, "")) for name in i.operands]
            kernel = tuple((dtype, shape) for found in of for dtype, shape, _ in found)
        return Operation(
            name=i.name,
            opcode=i.opcode,
            scope=i.scope or self._inner_scope(i),
            cycles=int(cycles[1]) if cycles else 0,
            flops=self._flops(i, types),
            hbm=self._hbm(i, types),
            kernel=kernel,
        )

    def _inner_scope(self, i: Instruction) -> str:
        for name in i.called("calls", "to_apply"):
            for inner in reversed(self._computations.get(name, [])):
                if inner.scope and inner.opcode not in _SKIPPED:
                    return inner.scope
        return ""

    def _flops(self, i: Instruction, types: dict[str, str]) -> float:
        if i.opcode in ("fusion", "async-start"):
            return sum(self.flops_of(name) for name in i.called("calls"))
        if i.opcode == "custom-call":
            stated = re.search(r'"cost_estimate":\{"flops":"?(\d+)', i.attributes)
            if '"__cublas$' in i.attributes:
                return _gemm_flops(i, types)
            return float(stated[1]) if stated else 0.0
        if i.opcode == "dot":
            return _dot_flops(i, types)
        return _convolution_flops(i, types) if i.opcode == "convolution" else 0.0

    def _flops_of(self, computation: str) -> float:
        inner = self._computations.get(computation, [])
        types = {i.name: i.type for i in inner}
        return sum(self._flops(i, types) for i in inner)

    def _hbm(self, i: Instruction, types: dict[str, str]) -> float:
        read = lambda name: _main_bytes(types.get(name, ""))
        if i.opcode in ("copy-start", "async-start") or i.opcode.endswith("slice-start"):
            return _moved(i)
        if i.opcode.endswith("-start"):  # of a collective: the result has operands and results
            return _main_bytes(i.type)
        if i.opcode in _SLICES:
            return 2 * _main_bytes(i.type)
        if i.opcode == "dynamic-update-slice":
            return 2 * read(i.operands[1])
        if i.opcode == "fusion":
            return self._fusion_bytes(i, types)
        return _main_bytes(i.type) + sum(map(read, i.operands))

    def _fusion_bytes(self, i: Instruction, types: dict[str, str]) -> float:
        """What a fusion reads and writes: of operands that it only slices, the slices."""
        inner = self._computations.get(i.called("calls")[0], [])
        by_name = {x.name: x for x in inner}
        total = _main_bytes(i.type)
        root = next((x for x in inner if x.root), None)
        updated = ""
        if root and root.opcode == "dynamic-update-slice":
            # In place: the rest of the array stays where it is.
            updated = root.operands[0]
            total = _main_bytes(by_name[root.operands[1]].type)
        for x in inner:
            if x.opcode != "parameter" or x.name == updated:
                continue
            whole = _main_bytes(types.get(i.operands[int(x.inside)], ""))
            users = [user for user in inner if x.name in user.operands]
            sliced = users and all(
                user.opcode in _SLICES and user.operands[0] == x.name for user in users
            )
            if sliced:
                whole = min(whole, sum(sum(size for size, _ in _bytes(u.type)) for u in users))
            total += whole
        return total


def _moved(i: Instruction) -> float:
    """Bytes of an asynchronous copy or slice, counted where they are in the main memory."""
    found = [(d, s, main) for d, s, main in arrays(i.type) if s]
    sizes = [hlo.BYTES[d] * math.prod(s) for d, s, _ in found[:2]]
    return float(min(sizes, default=0) * sum(main for _, _, main in found[:2]))


def _shape(types: dict[str, str], name: str) -> tuple[int, ...]:
    return arrays(types[name])[0][1]


def _dot_flops(i: Instruction, types: dict[str, str]) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
    sides = [int(n) for n in contracted[1].split(",") if n] if contracted else []
    left = _shape(types, i.operands[0])
    return 2.0 * math.prod(arrays(i.type)[0][1]) * math.prod(left[n] for n in sides)


def _gemm_flops(i: Instruction, types: dict[str, str]) -> float:
    """Of a cuBLAS call."""
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.attributes)
    sides = [int(n) for n in re.findall(r"\d+", contracted[1])] if contracted else []
    left = _shape(types, i.operands[0])
    return 2.0 * math.prod(arrays(i.type)[0][1]) * math.prod(left[n] for n in sides)


def _convolution_flops(i: Instruction, types: dict[str, str]) -> float:
    """A TPU's compiler writes matrix products as convolutions, batches of them as windows."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    if not labels:
        return 0.0
    kernel = _shape(types, i.operands[1])
    per_output = float(kernel[labels[2].index("i")])
    window = dict(re.findall(r"(\w+)=([\dx_-]+)", _window(i.attributes)))
    sizes = [int(n) for n in window.get("size", "").split("x") if n]
    dilated = [int(n) for n in window.get("lhs_dilate", "").split("x") if n] or [1] * len(sizes)
    reversed_rows = _padding(window.get("pad", ""), len(sizes))
    out = arrays(i.type)[0][1]
    for axis, size in enumerate(sizes):
        rows = out[labels[3].index(str(axis))]
        # A batch of products: each row of the output meets one place of the window.
        batch = dilated[axis] == size or (size == rows and reversed_rows[axis] >= size - 1 > 0)
        per_output *= 1 if batch else size
    return 2.0 * math.prod(out) * per_output


def _window(attributes: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    return found[1] if found else ""


def _padding(text: str, axes: int) -> list[int]:
    return [int(pair.split("_")[0]) for pair in text.split("x")] if text else [0] * axes
