"""A pickle machine that can build a state dict and nothing else.

Python's unpickler runs whatever a file names. This one interprets the instructions
that `torch.save` writes for dicts of tensors; names that it does not know are refused
before anything is built from them, and nothing of the file is ever called.
"""

import dataclasses
import pickletools
from typing import IO, Any


class PickleRefused(ValueError):
    """The pickle asks for something that a state dict does not need, or is damaged."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A reference to raw numbers elsewhere in the file: dtype name, key, number of elements."""

    dtype: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A strided view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER} | {f"torch.{name}" for name in _STORAGES}


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle mentions; only a token, never looked up."""

    name: str


_MARK = object()
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
}


_PUTS = ("BINPUT", "LONG_BINPUT")
_GETS = ("BINGET", "LONG_BINGET")
_IGNORED = ("PROTO", "FRAME")


def load_state(file: IO[bytes]) -> Any:
    """Reads one pickle from `file` and leaves the position behind it.

    Returns dicts, lists, tuples, numbers, strings and `TensorRef`s.
    Raises PickleRefused, naming what was refused.
    """
    machine = _Machine()
    try:
        while code := file.read(1):
            opcode = _OPCODES.get(code.decode("latin-1"))
            if opcode is None or opcode.name not in _ALLOWED:
                name = repr(code) if opcode is None else opcode.name
                raise PickleRefused(f"refused the pickle instruction {name}")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, _argument(opcode, file))
    except PickleRefused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise PickleRefused(f"damaged pickle ({type(error).__name__}: {error})") from None
    raise PickleRefused("the pickle ends early")


def _argument(opcode: pickletools.OpcodeInfo, file: IO[bytes]) -> Any:
    if opcode.name == "GLOBAL":
        # pickletools would undo escapes, of which no name has any.
        module, name = (file.readline().removesuffix(b"\n").decode() for _ in range(2))
        return f"{module}.{name}"
    return opcode.arg.reader(file) if opcode.arg else None


class _Machine:
    """Stack and memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleRefused("damaged pickle (unexpected mark)")
        return value

    def pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise PickleRefused("damaged pickle (no mark)")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _PUTS:
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name in _IGNORED:
            pass
        else:
            _ACTIONS[name](self, argument)

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise PickleRefused("damaged pickle (items for no dict)")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PickleRefused("damaged pickle (entries for no list)")
        self.stack[-1].extend(values)

    def push_global(self, name: str) -> None:
        if name not in _KNOWN:
            raise PickleRefused(f"refused to load {name!r}: a state dict does not need it")
        self.stack.append(_Global(name))

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_global(f"{module}.{name}")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise PickleRefused(f"refused to call a {type(function).__name__}")
        self.stack.append(_build(function.name, arguments))

    def persistent(self) -> None:
        self.stack.append(_storage(self.pop()))

    def build(self) -> None:
        """The attributes of an OrderedDict (torch keeps `_metadata` there) are dropped."""
        self.pop()
        if type(self.stack[-1]) is not dict:
            raise PickleRefused(f"refused to set attributes of a {type(self.stack[-1]).__name__}")


_ACTIONS = {
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "SETITEM": lambda machine, _: machine.set_item(),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "GLOBAL": lambda machine, name: machine.push_global(name),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "BINPERSID": lambda machine, _: machine.persistent(),
    "BUILD": lambda machine, _: machine.build(),
}


_ALLOWED = {"STOP", "MEMOIZE", *_CONSTANTS, *_LITERALS, *_PUTS, *_GETS, *_IGNORED, *_ACTIONS}


def _build(name: str, arguments: tuple[Any, ...]) -> Any:
    """The value of one of the known calls."""
    if name == _ORDERED_DICT and not arguments:
        return {}
    if name == _PARAMETER and arguments and isinstance(arguments[0], TensorRef):
        return arguments[0]
    if name == _TENSOR and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        sizes = (offset, *shape, *strides)
        whole = all(type(size) is int and size >= 0 for size in sizes)
        if isinstance(storage, Storage) and whole and len(shape) == len(strides):
            return TensorRef(storage, offset, tuple(shape), tuple(strides))
    raise PickleRefused(f"damaged pickle (arguments of {name})")


def _storage(identifier: Any) -> Storage:
    """`('storage', torch.FloatStorage, key, location, count, ...)`; the location is ignored."""
    if isinstance(identifier, tuple) and len(identifier) >= 5 and identifier[0] == "storage":
        kind, key, _, count = identifier[1:5]
        view = identifier[5] if len(identifier) > 5 else None
        dtype = (
            _STORAGES.get(kind.name.removeprefix("torch.")) if isinstance(kind, _Global) else None
        )
        if dtype and isinstance(key, str) and type(count) is int and count >= 0 and view is None:
            return Storage(dtype, key, count)
    raise PickleRefused("damaged pickle (storage reference)")
