"""A pickle machine that can build a state dict and nothing else.

Python's unpickler runs whatever a file names. This one interprets the instructions
that `torch.save` writes for dicts of tensors; names that it does not know are refused
before anything is built from them, and nothing of the file is ever called.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np


class PickleRefused(ValueError):
    """The pickle has something that a state dict does not need, or is damaged."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A reference to raw numbers elsewhere in the file; `count` of them."""

    dtype: np.dtype
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class TensorRef:
    """A strided view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that the pickle mentions; only a token, never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class Inert:
    """In place of an object that scripts save beside the weights; it holds nothing."""

    name: str


_DTYPES = {
    "torch.FloatStorage": np.dtype("float32"),
    "torch.DoubleStorage": np.dtype("float64"),
    "torch.HalfStorage": np.dtype("float16"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("int64"),
    "torch.IntStorage": np.dtype("int32"),
    "torch.ShortStorage": np.dtype("int16"),
    "torch.CharStorage": np.dtype("int8"),
    "torch.ByteStorage": np.dtype("uint8"),
    "torch.BoolStorage": np.dtype("bool"),
}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
# The command line, which the official code and timm save with the weights, and mmengine's
# history of metrics, which has numpy arrays and methods.
_INERT = {"argparse.Namespace", "mmengine.logging.history_buffer.HistoryBuffer"}
_INERT_CALLS = {
    # In the command line.
    *(f"pathlib.{part}{kind}Path" for part in ("", "_local.") for kind in ("Posix", "Windows")),
    *("torch.device", "torch.Size"),
    "__builtin__.getattr",
    "_codecs.encode",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
}
_TORCH_DTYPES = {f"torch.{kind}" for kind in ("float16", "bfloat16", "float32", "float64")}
_KNOWN = {_ORDERED_DICT, _TENSOR, _PARAMETER, *_INERT, *_INERT_CALLS, "numpy.ndarray"}
_KNOWN |= {*_DTYPES, *_TORCH_DTYPES}
# Those of state dicts and of optimizers; the hash of nested tuples may take for ever.
_KEYS = (str, int, float, bool, type(None))
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_MARK = object()
_LITERALS = "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE".split()


def load_state(file: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle from `file` and leaves the position behind it.

    Returns dicts, lists, tuples, numbers, strings, `TensorRef`s and `Inert`s; `storages` is
    filled with every storage that the pickle mentions, by key.
    Raises PickleRefused, naming what was refused.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        while code := file.read(1):
            opcode = _OPCODES.get(code.decode("latin-1"))
            name = opcode.name if opcode else repr(code)
            if opcode and name == "STOP":
                return machine.pop()
            # Refused before the argument is read, which may be of any size.
            if not opcode or name not in _INSTRUCTIONS:
                raise PickleRefused(f"refused the pickle instruction {name}")
            _INSTRUCTIONS[name](machine, _argument(opcode, file))
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

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleRefused("damaged pickle (unexpected mark)")
        return value

    def pop_several(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list[Any]:
        values = []
        while self.stack and self.stack[-1] is not _MARK:
            values.append(self.stack.pop())
        if not self.stack:
            raise PickleRefused("damaged pickle (no mark)")
        self.stack.pop()
        return values[::-1]

    def memoize(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise PickleRefused("damaged pickle (items for no dict)")
        for key in pairs[::2]:
            if type(key) not in _KEYS:
                raise PickleRefused(f"refused a {type(key).__name__} as key of a dict")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PickleRefused("damaged pickle (entries for no list)")
        self.stack[-1].extend(values)

    def push_global(self, name: str) -> None:
        if name not in _KNOWN:
            raise PickleRefused(
                f"refused to load {name!r}: a state dict does not need it; "
                "where the file is trusted, save its state dict alone with torch"
            )
        self.push(_Global(name))

    def new_object(self) -> None:
        """An object without its attributes, of a class that is known to be irrelevant."""
        cls, arguments = self.pop_several(2)
        if not _is_inert(cls) or arguments != ():
            raise PickleRefused("refused to make an object")
        self.push(Inert(cls.name))

    def reduce(self) -> None:
        function, arguments = self.pop_several(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise PickleRefused(f"refused to call a {type(function).__name__}")
        self.push(_build(function.name, arguments))

    def push_storage(self) -> None:
        storage = _storage(self.pop())
        self.storages[storage.key] = storage
        self.push(storage)

    def build(self) -> None:
        """Attributes are dropped; torch keeps `_metadata` in those of an OrderedDict."""
        self.pop()
        if type(self.stack[-1]) not in (dict, Inert):
            raise PickleRefused(f"refused to set attributes of a {type(self.stack[-1]).__name__}")


# What each instruction does with its argument; all others are refused.
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "MARK": lambda machine, _: machine.push(_MARK),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(_LITERALS, _Machine.push),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop_several(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop_several(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop_several(3))),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_several(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.pop_several(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "MEMOIZE": lambda machine, _: machine.memoize(len(machine.memo)),
    "BINGET": lambda machine, slot: machine.push(machine.memo[slot]),
    "LONG_BINGET": lambda machine, slot: machine.push(machine.memo[slot]),
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": lambda machine, _: machine.push_global(".".join(machine.pop_several(2))),
    "REDUCE": lambda machine, _: machine.reduce(),
    "NEWOBJ": lambda machine, _: machine.new_object(),
    "BINPERSID": lambda machine, _: machine.push_storage(),
    "BUILD": lambda machine, _: machine.build(),
}


def _build(name: str, arguments: tuple[Any, ...]) -> Any:
    """The value of one of the known calls."""
    if name == _ORDERED_DICT and not arguments:
        return {}
    if name in _INERT_CALLS and (name != "__builtin__.getattr" or _is_inert(arguments[0])):
        return Inert(name)
    if name == _PARAMETER and arguments and isinstance(arguments[0], TensorRef):
        return arguments[0]
    if name == _TENSOR and len(arguments) >= 4:
        storage, offset, shape, strides = arguments[:4]
        sizes = (offset, *shape, *strides)
        whole = all(type(size) is int and size >= 0 for size in sizes)
        if isinstance(storage, Storage) and whole and len(shape) == len(strides):
            return TensorRef(storage, offset, tuple(shape), tuple(strides))
    raise PickleRefused(f"damaged pickle (arguments of {name})")


def _is_inert(value: Any) -> bool:
    return isinstance(value, _Global) and value.name in _INERT


def _storage(identifier: Any) -> Storage:
    """`('storage', torch.FloatStorage, key, location, count, ...)`; the location is ignored."""
    if isinstance(identifier, tuple) and len(identifier) >= 5 and identifier[0] == "storage":
        kind, key, _, count, *view = identifier[1:6]
        dtype = _DTYPES.get(kind.name) if isinstance(kind, _Global) else None
        whole = isinstance(key, str) and type(count) is int and count >= 0
        if dtype is not None and whole and view in ([], [None]):
            return Storage(dtype, key, count)
    raise PickleRefused("damaged pickle (storage reference)")
