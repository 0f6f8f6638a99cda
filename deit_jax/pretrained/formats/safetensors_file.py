"""`.safetensors` files through their own package, those we write with a digest of the values."""

import hashlib
import json
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
import numpy as np

from deit_jax.errors import ConfigError

METADATA_KEY = "deit_jax"
_DIGEST = "sha256"


def read_safetensors(
    path: pathlib.Path, *, ema: bool = False, arrays: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors by name, and the notes of `write_safetensors` (`{}` in files of others).

    The digest of a file of ours is checked; the format itself has none. Without `arrays` only
    the header is read, and every tensor is a view of one zero in its shape.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: names file and reason; also for `ema`, which these files do not hold.
    """
    import safetensors

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if ema:
        raise ConfigError(f"{path}: holds no EMA weights beside the raw ones")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            if arrays:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            else:
                shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
                tensors = {k: np.broadcast_to(np.zeros(()), s) for k, s in shapes.items()}
        notes = json.loads(header.get(METADATA_KEY, "{}"))
    except Exception as error:  # The package's panics are plain exceptions without a public type.
        raise ConfigError(f"{path}: damaged file ({type(error).__name__}: {error})") from None
    if METADATA_KEY in header:
        wanted = notes.pop(_DIGEST, None) if isinstance(notes, dict) else None
        if wanted is None or arrays and wanted != digest(tensors, notes):
            raise ConfigError(f"{path}: damaged file (the values do not match its digest)")
    return tensors, notes


def write_safetensors(
    path: pathlib.Path, tensors: dict[str, np.ndarray], notes: dict[str, Any]
) -> None:
    """Writes `tensors` with `notes` (JSON) and their digest in the header, atomically."""
    from safetensors.numpy import save_file

    # The package writes the memory of a strided array as it is, so in the wrong order.
    # `ascontiguousarray` would turn scalars into vectors.
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    notes = json.loads(json.dumps(notes))
    header = json.dumps(notes | {_DIGEST: digest(tensors, notes)}, sort_keys=True)
    partial = path.with_name(path.name + ".partial")
    # torch-side readers refuse files without this format.
    save_file(tensors, partial, metadata={"format": "pt", METADATA_KEY: header})
    partial.replace(path)


def digest(tensors: dict[str, np.ndarray], notes: dict[str, Any]) -> str:
    """SHA-256 over names, types, shapes and values in the order of names, and the notes."""
    total = hashlib.sha256(json.dumps(notes, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        total.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()
