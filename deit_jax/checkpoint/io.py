"""Reading and writing one step; the only module that imports orbax."""

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from deit_jax import storage
from deit_jax.checkpoint import layout
from deit_jax.checkpoint.digest import digest_array, digest_tree
from deit_jax.checkpoint.layout import DamagedCheckpointError, StructureError
from deit_jax.checkpoint.parts import filled, state_parts
from deit_jax.errors import ConfigError
from deit_jax.train_state import TrainState
from deit_jax.trees import PyTree, named_leaves, nested

# As `layout.MACHINE_ERRNOS`, in the messages of libraries.
_MACHINE_WORDS = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", "UNAUTHENTICATED")
# From the metadata of a checkpoint to why it is of another run, "" if it is not.
Foreign = Callable[[Mapping[str, Any]], str]


class Restored(NamedTuple):
    """A verified state, the metadata saved with it, and its step."""

    state: TrainState
    metadata: dict[str, Any]
    step: int


def begin_save(folder: storage.Path, state: TrainState, metadata: Mapping[str, Any]) -> Any:
    """Copies `state` to the host and starts to write; `.result()` of the return value waits.

    Computes and stores the manifest that `read_state` verifies against.
    """
    parts = state_parts(state)
    manifest = layout.make_manifest(named_leaves(parts), digest_tree(parts), metadata)
    with _context():
        return ocp.save_checkpointables_async(
            str(folder), parts | {layout.MANIFEST: manifest, layout.METADATA: dict(metadata)}
        )


def read_state(
    folder: storage.Path, abstract: TrainState, step: int, foreign: Foreign = lambda metadata: ""
) -> Restored:
    """One step onto the devices that `abstract` names, verified.

    `foreign`: see `Checkpointer.restore`.

    Raises:
      DamagedCheckpointError: it differs from what was saved, or is of another run.
      StructureError: it is another model, optimizer or state.
    """
    described = layout.read_description(folder)
    if reason := foreign(described.metadata):
        raise DamagedCheckpointError(f"{folder} is of another run: {reason}")
    names = named_leaves(state_parts(abstract))
    lines = layout.structural_differences(described.leaves, names)
    if lines:
        raise StructureError(
            f"{folder} does not fit this config; {len(lines)} arrays differ:\n  "
            + "\n  ".join(lines)
            + "\nUse the config of that run, or another workdir with config.init set to this one."
        )
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or local)
        for name, leaf in names.items()
    }
    loaded = _load(folder, nested(wanted))
    layout.check_digests(folder, described, digest_tree(loaded))
    return Restored(filled(abstract, named_leaves(loaded)), described.metadata, step)


def read_variables(
    path: str | os.PathLike | storage.Path, *, ema: bool = False, which: str = "latest"
) -> tuple[dict[str, PyTree], dict[str, Any]]:
    """Parameters (and BatchNorm statistics) of a run, as numpy arrays on the host.

    Reads nothing but them: no optimizer state, no accelerator, any process count.

    Args:
      path, which: see `layout.select_step`.
      ema: the EMA instead of the raw ones.

    Returns:
      `{"params": ..., "batch_stats": ...}` (the latter only for models that have it), and
      the metadata that `Checkpointer.save` was given.

    Raises:
      FileNotFoundError: no checkpoint there.
      DamagedCheckpointError: it fails to verify; names the arrays. No older one is read
        instead, as the caller would not notice.
      ConfigError: no such step, or no EMA in it.
    """
    quiet_orbax()
    folder, described = _described_variables(path, ema, which)
    prefixes = ("ema/",) if ema else ("params/", "batch_stats/")
    hosts = {
        name: np.broadcast_to(np.zeros((), jnp.dtype(leaf["dtype"])), leaf["shape"])
        for name, leaf in described.leaves.items()
        if name.startswith(prefixes)
    }
    loaded = named_leaves(_load(folder, nested(hosts)))
    digests = {name: digest_array(loaded[name]) for name in hosts}
    layout.check_digests(folder, described, digests)
    variables = nested({name: loaded[name] for name in hosts})
    return variables["ema"] if ema else variables, described.metadata


def read_metadata(
    path: str | os.PathLike | storage.Path, *, ema: bool = False, which: str = "latest"
) -> dict[str, Any]:
    """The metadata that `read_variables` returns, verified, without reading an array."""
    return _described_variables(path, ema, which)[1].metadata


def _described_variables(
    path: str | os.PathLike | storage.Path, ema: bool, which: str
) -> tuple[storage.Path, layout.Described]:
    folder = layout.select_step(path, which=which).folder
    described = layout.read_description(folder)
    if ema and not any(name.startswith("ema/") for name in described.leaves):
        raise ConfigError(f"{folder} holds no EMA (the run had none); read it with ema=False")
    return folder, described


def _load(folder: storage.Path, wanted: dict[str, PyTree]) -> dict[str, PyTree]:
    # One part after another: where one fails, orbax leaves the others' coroutines unawaited.
    return {part: _load_part(folder, part, tree) for part, tree in wanted.items()}


def _load_part(folder: storage.Path, part: str, tree: PyTree) -> PyTree:
    try:
        with _quiet_failure(), _context():
            return ocp.load_checkpointables(str(folder), {part: tree})[part]
    except Exception as error:  # damage shows as a dozen kinds, from KeyError to bare Exception
        machine = (
            isinstance(error, MemoryError) or getattr(error, "errno", 0) in layout.MACHINE_ERRNOS
        )
        words = any(word in str(error) for word in _MACHINE_WORDS)
        if machine or words or storage.is_refusal(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise DamagedCheckpointError(
            f"{folder / part} cannot be read: {type(error).__name__}: {reason}"
        ) from error


def _context() -> ocp.Context:
    registry = ocp.handlers.local_registry()
    for part in (layout.MANIFEST, layout.METADATA):
        registry.add(ocp.handlers.JsonHandler, checkpointable_name=part)
    context = ocp.Context()
    context.checkpointables.registry = registry
    # Made in the background, a folder that cannot be made shows only after minutes.
    context.asynchronous.create_directories_asynchronously = False
    return context


@contextlib.contextmanager
def _quiet_failure() -> Iterator[None]:
    """When a read fails, orbax drops concurrent reads, which then warn on their own."""
    hook = sys.unraisablehook

    def filtered(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        sys.unraisablehook = filtered
        try:
            yield
        except Exception:
            gc.collect()
            raise
        finally:
            sys.unraisablehook = hook


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return record.levelno > logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname


def quiet_orbax() -> None:
    """Drops what orbax logs through absl: its failures are raised, and reported by us."""
    logging.getLogger("absl").addFilter(_not_from_orbax)
