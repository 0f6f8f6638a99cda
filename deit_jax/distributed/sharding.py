"""Where arrays live: one mesh `("data", "fsdp")`, rows over both axes, big leaves along fsdp.

The only place that builds a mesh. Axes are Auto: under Explicit axes (the default of
`jax.make_mesh`) indexing a sharded batch with a permutation raises.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from deit_jax.errors import ConfigError, check_at_most

PyTree = Any

AXES = ("data", "fsdp")
# Smaller leaves (biases, norms, tokens) stay whole: gathering them costs more than they save.
MIN_SHARDED_SIZE = 2**14


def make_mesh(devices: Sequence[Any] | None = None, *, data: int = -1, fsdp: int = 1) -> Mesh:
    """The mesh of all devices of all processes, axes `("data", "fsdp")`.

    In several TPU slices the data axis spans the slices, over the data center's network, and
    fsdp stays within a slice, on its fast links.

    Args:
      devices: other devices than those of the run, to compile for.
      data: devices that share the batch and hold whole parameters; -1 takes all that
        `fsdp` leaves.
      fsdp: devices over which parameters, optimizer state and EMA are cut up. They
        share the batch too.

    Raises:
      ConfigError: `data * fsdp` is not the number of devices, or fsdp does not fit into a
        slice. Fewer devices are not taken silently: the rest would idle.
    """
    devices = jax.devices() if devices is None else list(devices)
    count, slices = len(devices), slice_count(devices)
    check_sizes(data=data, fsdp=fsdp)
    if count // slices % fsdp or (data != -1 and data * fsdp != count):
        sizes = [n for n in range(1, count + 1) if count // slices % n == 0]
        choices = [f"data={count // n}, fsdp={n}" for n in sizes]
        where = f" in {slices} slices, none of which fsdp may leave" if slices > 1 else ""
        raise ConfigError(
            f"config.mesh: data={data} x fsdp={fsdp} does not fit the {count} devices "
            f"({devices[0].platform}){where}; possible: {'; '.join(choices)}"
        )
    grid = mesh_utils.create_hybrid_device_mesh if slices > 1 else mesh_utils.create_device_mesh
    shape = (count // slices // fsdp, fsdp)
    over = ((slices, 1),) if slices > 1 else ()
    placed = grid(shape, *over, devices=devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def check_sizes(*, data: int, fsdp: int) -> None:
    """Raises ConfigError for sizes that are those of no mesh, whatever the devices."""
    if fsdp < 1 or (data < 1 and data != -1):
        raise ConfigError(
            f"config.mesh: data={data}, fsdp={fsdp}; both must be at least 1, "
            "or data=-1 for all devices that fsdp leaves"
        )
    check_at_most(2**20, data=data, fsdp=fsdp)


def slice_count(devices: Iterable[Any]) -> int:
    """TPU slices of the devices; nodes of GPUs, which their libraries see through, count as one."""
    found = {getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices}
    return len(found)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis (rows of the batch) over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def on_rows(step: Callable, rows: NamedSharding) -> Callable:
    """`step(..., batch)` with every array of its batch cut by `rows`.

    Within it their mesh is the one in use (`jax.sharding.get_abstract_mesh`), for kernels, which
    the compiler cannot cut up.
    """

    def constrained(*arguments: PyTree):
        *state, batch = arguments
        with jax.sharding.use_abstract_mesh(rows.mesh.abstract_mesh):
            return step(*state, jax.lax.with_sharding_constraint(batch, rows))

    return constrained


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(
    mesh: Mesh, abstract_tree: PyTree, *, min_size: int = MIN_SHARDED_SIZE
) -> PyTree:
    """A sharding for every leaf: the largest axis that fsdp divides is sharded, big leaves only.

    Works on parameters, optimizer state and whole training states alike: moments and
    averages have the shapes of their parameters and so get the same sharding. Meant for
    `jax.jit(init, out_shardings=tree_shardings(mesh, jax.eval_shape(init, key)))`: leaves
    are then born sharded and never exist whole on one device.

    Args:
      mesh: from `make_mesh`.
      abstract_tree: tree whose leaves have `.shape`.
      min_size: leaves of fewer elements are replicated.
    """

    def leaf_sharding(leaf: Any) -> NamedSharding:
        axis = sharded_axis(leaf.shape, mesh.shape["fsdp"], min_size=min_size)
        spec = PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, "fsdp")
        return NamedSharding(mesh, spec)

    return jax.tree.map(leaf_sharding, abstract_tree)


def sharded_axis(
    shape: tuple[int, ...], parts: int, *, min_size: int = MIN_SHARDED_SIZE
) -> int | None:
    """The axis of a leaf that `parts` devices share, None where every device has all of it."""
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes or math.prod(shape) < min_size:
        return None
    # The last of equally large axes: columns of a square kernel, the contiguous ones.
    return max(axes, key=lambda axis: (shape[axis], axis))


def local_rows(sharding: NamedSharding, rows: int) -> np.ndarray:
    """The global row numbers that this process holds, ascending, int64 [n].

    Asked from the sharding itself, because a mesh may permute devices: "the h-th block"
    is not what process h holds on every machine.

    Raises:
      ConfigError: the devices do not divide `rows`.
    """
    _check_divisible(sharding, rows)
    held: set[int] = set()
    indices = sharding.addressable_devices_indices_map((rows,))
    for index, *_rest in filter(None, indices.values()):
        held.update(range(*index.indices(rows)))
    return np.asarray(sorted(held), np.int64)


def to_global(
    where: Mesh | NamedSharding,
    local_batch: Mapping[str, np.ndarray],
    *,
    whole: tuple[str, ...] = ("canvas_index",),
) -> dict[str, jax.Array]:
    """Global arrays from what this process made.

    Args:
      where: the mesh, or the sharding of the rows.
      local_batch: dict of numpy arrays; each holds the rows `local_rows` names, in that
        order. Keys in `whole` are the same whole array on every process and are
        replicated.
      whole: see above.

    Raises:
      ConfigError: the devices do not divide the rows.
    """
    rows = where if isinstance(where, NamedSharding) else batch_sharding(where)
    copies = replicated(rows.mesh)

    def place(name: str, value: np.ndarray) -> jax.Array:
        value = np.asarray(value)
        if name in whole:
            return jax.make_array_from_callback(value.shape, copies, lambda index: value[index])
        total = _global_rows(rows, value.shape[0])
        held = local_rows(rows, total)

        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            first = int(np.searchsorted(held, start))
            return value[first : first + stop - start]

        return jax.make_array_from_callback((total, *value.shape[1:]), rows, piece)

    return {name: place(name, value) for name, value in local_batch.items()}


def _check_divisible(sharding: NamedSharding, rows: int) -> None:
    parts = sharding.mesh.size
    if rows % parts:
        near = (rows // parts * parts, -(-rows // parts) * parts)
        raise ConfigError(
            f"{rows} rows cannot be shared equally by {parts} devices; nearest batch sizes that "
            f"can: {', '.join(str(n) for n in near if n)}"
        )


def _global_rows(sharding: NamedSharding, local: int) -> int:
    here = len(sharding.addressable_devices)
    if local % here:
        _check_divisible(sharding, local * sharding.mesh.size // here or local)
        raise ConfigError(f"{local} rows cannot be shared equally by this process's {here} devices")
    return local // here * sharding.mesh.size
