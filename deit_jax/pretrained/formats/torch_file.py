"""`torch.save` files, both the zip kind (torch >= 1.6) and the pickle stream before it."""

import functools
import io
import os
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from deit_jax.errors import ConfigError
from deit_jax.pretrained.formats import mmengine
from deit_jax.pretrained.formats.pickles import PickleRefused, Storage, TensorRef, load_state

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_READ_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, MemoryError),
    *(TypeError, ValueError, LookupError, ArithmeticError, RuntimeError),
)
# Keys under which training scripts save their state dicts; by whether these are of the EMA.
# Notes on a file with raw and EMA weights have this key.
HAS_BOTH = "raw and EMA weights"
_WRAPPERS = {False: ("model", "state_dict"), True: ("model_ema", "state_dict_ema")}


def read_state_dict(
    path: pathlib.Path, *, ema: bool = False, arrays: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The (EMA) weights of a `torch.save` file by name, and its notes; always read whole.

    Raises:
      ConfigError: not a state dict of tensors, or one without EMA.
    """
    tree = read_torch(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"holds a {type(tree).__name__}, not a state dict")
    tree = mmengine.weights(tree)
    wrapper = next((key for key in _WRAPPERS[ema] if key in tree), None)
    if ema and wrapper is None:
        raise ConfigError(f"holds no EMA weights ({' or '.join(_WRAPPERS[ema])})")
    state = tree[wrapper] if wrapper else tree
    if not isinstance(state, dict) or not state:
        raise ConfigError("holds no state dict")
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, np.ndarray)}
    other = [str(key) for key in state if key not in tensors]
    if other:
        raise ConfigError(f"entries that are not tensors: {', '.join(other[:5])}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    both = all(any(key in tree for key in keys) for keys in _WRAPPERS.values())
    return state, dict(mmengine.notes(tree)) | {HAS_BOTH: both}


def read_torch(path: pathlib.Path) -> Any:
    """What was saved, tensors as numpy arrays. Raises ConfigError naming file and reason."""
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_zip(file)
            file.seek(0)
            return _read_legacy(file)
    except PickleRefused as error:
        raise ConfigError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise
    except _READ_ERRORS as error:
        raise ConfigError(f"{path}: damaged file ({type(error).__name__}: {error})") from None


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise PickleRefused("not a torch file: not one data.pkl in the archive")
        root = pickles[0].removesuffix("data.pkl")
        # torch stores without compression; refusing the rest rules out decompression bombs.
        packed = [n for n, info in members.items() if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise PickleRefused(f"compressed member {packed[0]}")
        order_file = f"{root}byteorder"
        order = archive.read(order_file).decode() if order_file in members else "little"
        if order not in ("little", "big"):
            raise PickleRefused(f"unknown byte order {order!r}")

        @functools.cache
        def numbers(storage: Storage) -> np.ndarray:
            # `read` checks the member's CRC-32.
            return _numbers(archive.read(f"{root}data/{storage.key}"), storage, order)

        return _resolve(load_state(io.BytesIO(archive.read(pickles[0]))), numbers)


def _read_legacy(file: IO[bytes]) -> Any:
    """Five pickles (magic, protocol, system, object, storage keys), then storages with counts."""
    if load_state(file) != _LEGACY_MAGIC or load_state(file) != _LEGACY_PROTOCOL:
        raise PickleRefused("not a torch file: wrong magic number")
    storages: dict[str, Storage] = {}
    system, tree, keys = load_state(file), load_state(file, storages), load_state(file)
    order = "little" if system["little_endian"] else "big"
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleRefused("damaged pickle (keys of the storages)")
    if not set(storages) <= set(keys):
        raise PickleRefused("storages are missing")
    cache = {}
    size = os.fstat(file.fileno()).st_size
    for key in keys:
        count = int.from_bytes(file.read(8), order)
        if key not in storages or storages[key].count != count:
            raise PickleRefused(f"storage {key} is not of the size that the tensors state")
        # Not more than there is: reading sets memory aside first.
        data = file.read(min(count * storages[key].dtype.itemsize, size))
        cache[key] = _numbers(data, storages[key], order)
    if file.read(1):
        raise PickleRefused("bytes after the last storage")
    return _resolve(tree, lambda storage: cache[storage.key])


def _numbers(data: bytes, storage: Storage, order: str) -> np.ndarray:
    if len(data) != storage.count * storage.dtype.itemsize:
        raise PickleRefused(
            f"storage {storage.key} has {len(data)} bytes, not {storage.count} numbers"
        )
    values = np.frombuffer(data, storage.dtype)
    return values.byteswap() if order == "big" else values


def _resolve(tree: Any, numbers: Callable[[Storage], np.ndarray]) -> Any:
    """`tree` with arrays in place of references; only dicts are followed, two deep.

    A state dict is a dict of tensors, perhaps inside `{'model': ...}`. Deeper are only the
    states of optimizers. One that is referred to many times is followed once.
    """
    done: dict[int, Any] = {}

    def follow(value: Any, depth: int) -> Any:
        if isinstance(value, TensorRef):
            return _view(numbers(value.storage), value)
        if not isinstance(value, dict) or depth == 2:
            return value
        if id(value) not in done:
            done[id(value)] = {key: follow(part, depth + 1) for key, part in value.items()}
        return done[id(value)]

    return follow(tree, 0)


def _view(values: np.ndarray, ref: TensorRef) -> np.ndarray:
    last = sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides, strict=True))
    if 0 in ref.shape:
        return np.zeros(ref.shape, values.dtype)
    if ref.offset + last >= values.size or int(np.prod(ref.shape, dtype=object)) > values.size:
        raise PickleRefused(f"a tensor of shape {ref.shape} reaches beyond its storage")
    # No state dict needs one element at two places; damaged strides would.
    reach = 1
    for stride, size in sorted(zip(ref.strides, ref.shape, strict=True)):
        if size > 1 and stride < reach:
            raise PickleRefused(f"a tensor of shape {ref.shape} overlaps itself")
        reach += (size - 1) * stride
    # The stride of an axis of one may be anything.
    pairs = zip(ref.shape, ref.strides, strict=True)
    strides = [stride * values.itemsize if size > 1 else 0 for size, stride in pairs]
    return np.lib.stride_tricks.as_strided(
        values[ref.offset :], ref.shape, strides, writeable=False
    )


def write_torch(path: pathlib.Path, tree: dict[str, Any]) -> None:
    """Writes dicts of f32 arrays, strings, numbers and lists as `torch.save` would, atomically."""
    arrays: list[np.ndarray] = []
    content = pickle.PROTO + b"\2" + _pickled(tree, arrays) + pickle.STOP
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(f"archive/data/{key}", array.astype("<f4").tobytes())
        archive.writestr("archive/version", "3\n")
    partial.replace(path)


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The instructions that make `value`; its arrays are appended to `arrays`."""
    if isinstance(value, dict):
        items = [_pickled(part, arrays) for item in value.items() for part in item]
        return b"".join([pickle.EMPTY_DICT, pickle.MARK, *items, pickle.SETITEMS])
    if not isinstance(value, np.ndarray):
        # Without the protocol and the end.
        return pickle.dumps(value, 2)[2:-1]
    array = np.ascontiguousarray(value, np.float32).reshape(value.shape)
    arrays.append(array)
    key, strides = str(len(arrays) - 1), tuple(size // 4 for size in array.strides)
    names = (b"torch._utils\n_rebuild_tensor_v2\n", b"torch\nFloatStorage\n")
    rebuild, kind = (pickle.GLOBAL + name for name in names)
    before, *behind = (_pickled(part, arrays) for part in ("storage", key, "cpu", array.size))
    storage = [pickle.MARK, before, kind, *behind, pickle.TUPLE, pickle.BINPERSID]
    rest = [_pickled(part, arrays) for part in (0, array.shape, strides, False)]
    hooks = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    return b"".join([rebuild, pickle.MARK, *storage, *rest, hooks, pickle.TUPLE, pickle.REDUCE])
