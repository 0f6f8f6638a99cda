"""Which part of a step an operation of a compiled program belongs to, by the scope that made it."""

import re

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# The first that is found in an operation's scope; `student` are the modules of the model.
_PARTS = (
    (r"\baugment/.*\b(crop|color|normalize|lighting|erasing|target|mix|exchange)\b", "augment {}"),
    (r"\baugment\b", "augment other"),
    (r"\bteacher\b", "teacher"),
    (r"\bpatch_embed\b", "patch embedding"),
    (r"\battn/qkv\b", "qkv"),
    (r"\battn/proj\b", "projection"),
    (r"\battn\b", "attention"),
    (r"\bmlp/(fc\d)\b", "mlp {}"),
    (r"\bmlp\b", "mlp activation"),
    (r"\bblocks_\d+/norm\d\b|/norm/", "norms"),
    (r"\bhead(_dist)?\b", "heads"),
    (r"\bema\b", "EMA"),
    (r"\boptimizer\b", "optimizer"),
    (r"\bmetrics\b", "norms of gradients"),
    (r"\bloss\b", "loss"),
    (r"\bblocks_\d+\b", "residuals"),
    (r"\b(s\d+_b\d+|stem)\b", "convolutions"),
    (r"\b(VisionTransformer|RegNet)\b", "tokens and positions"),
)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.<>-]+) = .*?\s([a-z][\w-]*)\(")
_SCOPE = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.<>-]+)")


def part_of(opcode: str, scope: str) -> str:
    """The part that an operation belongs to.

    Args:
      opcode: as the program's text has it, `all-reduce-start` for example.
      scope: path of the functions and modules that made it; empty where the compiler did.
    """
    if opcode.removesuffix("-start") in COLLECTIVES:
        return "collectives"
    for pattern, name in _PARTS:
        if found := re.search(pattern, scope):
            return name.format(*found.groups())
    return "unnamed" if not scope else "other"


def operations(text: str) -> dict[str, tuple[str, str]]:
    """Name -> (opcode, scope) of all operations of a program's HLO text.

    A fusion without a scope has that of the last of its operations that has one.
    """
    found: dict[str, tuple[str, str]] = {}
    called: dict[str, str] = {}
    last: dict[str, str] = {}
    computation = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{") and "->" in line:
            computation = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0]
        elif head := _INSTRUCTION.match(line):
            scope = _SCOPE.search(line)
            found[head[1]] = head[2], scope[1] if scope else ""
            if scope:
                last[computation] = scope[1]
            if inner := _CALLED.search(line):
                called[head[1]] = inner[1]
    return {
        name: (opcode, scope or last.get(called.get(name, ""), ""))
        for name, (opcode, scope) in found.items()
    }
