"""`torch.save` files, both the zip kind (torch >= 1.6) and the pickle stream before it."""

import io
import pathlib
import zipfile
import zlib
from typing import IO, Any

import ml_dtypes
import numpy as np

from deit_jax.errors import ConfigError
from deit_jax.pretrained.formats.pickles import PickleRefused, Storage, TensorRef, load_state

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BOTH_ORDERS = ("little", "big")


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
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        MemoryError,
    ) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ConfigError(f"{path}: damaged file ({type(error).__name__}: {error})") from None


def _read_zip(file: IO[bytes]) -> Any:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise PickleRefused("no torch file: not one data.pkl in the archive")
        root = pickles[0].removesuffix("data.pkl")
        # torch stores without compression; refusing the rest rules out decompression bombs.
        packed = [n for n, info in members.items() if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise PickleRefused(f"compressed member {packed[0]}")
        order = "little"
        if f"{root}byteorder" in members:
            order = archive.read(f"{root}byteorder").decode()
        if order not in _BOTH_ORDERS:
            raise PickleRefused(f"unknown byte order {order!r}")
        tree = load_state(io.BytesIO(archive.read(pickles[0])))
        cache: dict[str, np.ndarray] = {}

        def numbers(storage: Storage) -> np.ndarray:
            if storage.key not in cache:
                # `read` checks the member's CRC-32.
                data = archive.read(f"{root}data/{storage.key}")
                cache[storage.key] = _numbers(data, storage, order)
            return cache[storage.key]

        return _resolve(tree, numbers)


def _read_legacy(file: IO[bytes]) -> Any:
    """Pickles (magic, protocol, system, object, storage keys), then the storages, each with a count."""
    if load_state(file) != _LEGACY_MAGIC or load_state(file) != _LEGACY_PROTOCOL:
        raise PickleRefused("no torch file: wrong magic number")
    system, tree, keys = load_state(file), load_state(file), load_state(file)
    order = "little" if system["little_endian"] else "big"
    storages = {ref.storage.key: ref.storage for ref in _references(tree)}
    if not isinstance(keys, list) or not set(storages) <= set(keys):
        raise PickleRefused("storages are missing")
    cache = {}
    for key in keys:
        count = int.from_bytes(file.read(8), order)
        if key not in storages or storages[key].count != count:
            raise PickleRefused(f"storage {key} has another size than the tensors say")
        size = count * np.dtype(_dtype(storages[key])).itemsize
        cache[key] = _numbers(file.read(size), storages[key], order)
    if file.read(1):
        raise PickleRefused("bytes behind the last storage")
    return _resolve(tree, lambda storage: cache[storage.key])


def _dtype(storage: Storage) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if storage.dtype == "bfloat16" else storage.dtype)


def _numbers(data: bytes, storage: Storage, order: str) -> np.ndarray:
    dtype = _dtype(storage)
    if len(data) != storage.count * dtype.itemsize:
        raise PickleRefused(
            f"storage {storage.key} has {len(data)} bytes, not {storage.count} numbers"
        )
    values = np.frombuffer(data, dtype)
    return values.byteswap() if order == "big" and dtype.itemsize > 1 else values


def _references(tree: Any):
    """All tensor references; containers that contain themselves are visited once."""
    seen, pending = set(), [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, TensorRef):
            yield node
        elif isinstance(node, (dict, list, tuple)) and id(node) not in seen:
            seen.add(id(node))
            pending.extend(node.values() if isinstance(node, dict) else node)


def _resolve(tree: Any, numbers: Any, depth: int = 0) -> Any:
    """`tree` with arrays in place of references; only dicts are followed, four deep.

    A state dict is a dict of tensors, perhaps inside `{'model': ...}`.
    """
    if isinstance(tree, TensorRef):
        return _view(numbers(tree.storage), tree)
    if isinstance(tree, dict) and depth < 4:
        return {key: _resolve(value, numbers, depth + 1) for key, value in tree.items()}
    return tree


def _view(values: np.ndarray, ref: TensorRef) -> np.ndarray:
    last = sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides))
    if 0 in ref.shape:
        return np.zeros(ref.shape, values.dtype)
    if ref.offset + last >= values.size or int(np.prod(ref.shape, dtype=object)) > values.size:
        raise PickleRefused(f"a tensor of shape {ref.shape} reaches beyond its storage")
    # No state dict needs one element at two places; damaged strides would.
    reach = 1
    for stride, size in sorted(zip(ref.strides, ref.shape)):
        if size > 1 and stride < reach:
            raise PickleRefused(f"a tensor of shape {ref.shape} overlaps itself")
        reach += (size - 1) * stride
    strides = [stride * values.itemsize for stride in ref.strides]
    return np.lib.stride_tricks.as_strided(
        values[ref.offset :], ref.shape, strides, writeable=False
    )
