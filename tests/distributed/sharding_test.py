"""The mesh, who holds which rows, and states that are born sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError


def test_mesh_takes_all_devices():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.make_mesh(data=1, fsdp=8).shape) == {"data": 1, "fsdp": 8}


@pytest.mark.parametrize("sizes", [{"data": 3}, {"fsdp": 3}, {"data": 4}, {"data": 4, "fsdp": 4}])
def test_mesh_that_does_not_fit_names_those_that_do(sizes):
    with pytest.raises(ConfigError, match=r"8 devices.*data=8, fsdp=1.*data=2, fsdp=4"):
        sharding.make_mesh(**sizes)


@pytest.mark.parametrize("sizes", [{"data": 0}, {"fsdp": 0}, {"data": -2}])
def test_mesh_sizes_are_positive(sizes):
    with pytest.raises(ConfigError, match="at least 1"):
        sharding.make_mesh(**sizes)


class FakeChip:
    """A TPU chip of two slices of 4 x 4, as jax describes it."""

    platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

    def __init__(self, number):
        self.id, self.process_index = number, number // 4
        self.slice_index, place = divmod(number, 16)
        self.coords = (place % 4, place // 4, 0)


@pytest.mark.parametrize("fsdp", [1, 2, 4, 16])
def test_fsdp_stays_in_a_slice_and_data_spans_them(fsdp):
    mesh = sharding.make_mesh([FakeChip(number) for number in range(32)], fsdp=fsdp)
    assert dict(mesh.shape) == {"data": 32 // fsdp, "fsdp": fsdp}
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert (slices == slices[:, :1]).all(), "one row of fsdp in two slices"
    assert (np.sort(slices[:, 0]) == slices[:, 0]).all() and {*slices[:, 0]} == {0, 1}
    assert len({chip.id for chip in mesh.devices.flat}) == 32


def test_fsdp_over_slices_is_refused():
    chips = [FakeChip(number) for number in range(32)]
    with pytest.raises(
        ConfigError, match=r"2 slices, none of which fsdp may leave.*data=2, fsdp=16$"
    ):
        sharding.make_mesh(chips, fsdp=32)


def test_permuting_a_sharded_batch_is_allowed():
    # Explicit axes, which jax.make_mesh gives by default, refuse this.
    rows = sharding.batch_sharding(sharding.make_mesh(data=4, fsdp=2))
    batch = jax.device_put(np.arange(16), rows)
    order = np.random.RandomState(0).permutation(16)
    np.testing.assert_array_equal(jax.jit(lambda x: x[order])(batch), order)


def _init(key):
    params = {
        "kernel": jax.random.normal(key, (192, 576)),
        "square": jax.random.normal(key, (256, 256)),
        "odd": jnp.zeros((191, 577)),
        "bias": jnp.zeros((576,)),
        "cls_token": jnp.zeros((1, 1, 192)),
    }
    return params, optax.adamw(1e-3).init(params)


def test_big_leaves_are_cut_along_the_largest_axis_that_divides():
    mesh = sharding.make_mesh(fsdp=4)
    params, _ = sharding.tree_shardings(mesh, jax.eval_shape(_init, jax.random.key(0)))
    specs = {name: s.spec for name, s in params.items()}
    assert specs == {
        "kernel": PartitionSpec(None, "fsdp"),
        "square": PartitionSpec(None, "fsdp"),
        "odd": PartitionSpec(),
        "bias": PartitionSpec(),
        "cls_token": PartitionSpec(),
    }


def test_state_is_born_sharded_and_moments_lie_with_their_parameters():
    mesh = sharding.make_mesh(fsdp=4)
    shardings = sharding.tree_shardings(mesh, jax.eval_shape(_init, jax.random.key(0)))
    params, opt_state = jax.jit(_init, out_shardings=shardings)(jax.random.key(0))
    for tree in (params, opt_state[0].mu, opt_state[0].nu):
        assert tree["kernel"].addressable_shards[0].data.shape == (192, 144)
        assert tree["bias"].sharding.is_fully_replicated
    np.testing.assert_array_equal(params["kernel"], jax.jit(_init)(jax.random.key(0))[0]["kernel"])


def test_without_fsdp_everything_is_replicated():
    mesh = sharding.make_mesh()
    tree = sharding.tree_shardings(mesh, jax.eval_shape(_init, jax.random.key(0)))
    assert all(s.is_fully_replicated for s in jax.tree.leaves(tree))


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 8)])
@pytest.mark.parametrize("permuted", [False, True])
def test_global_batch_is_the_local_rows_in_order(shape, permuted):
    devices = np.array(jax.devices())
    if permuted:
        devices = devices[np.random.RandomState(1).permutation(8)]
    mesh = Mesh(devices.reshape(shape), sharding.AXES, axis_types=(AxisType.Auto,) * 2)
    rows = sharding.batch_sharding(mesh)
    held = sharding.local_rows(rows, 24)
    np.testing.assert_array_equal(held, np.arange(24))
    batch = {
        "canvas": np.random.RandomState(0).randint(0, 255, (24, 4, 4, 3)).astype(np.uint8),
        "label": held.astype(np.int32),
        "canvas_index": np.arange(5, dtype=np.int32),
    }
    out = sharding.to_global(mesh, batch)
    for name, value in batch.items():
        np.testing.assert_array_equal(out[name], value)
        assert out[name].dtype == value.dtype
    assert out["canvas"].addressable_shards[0].data.shape == (3, 4, 4, 3)
    assert out["canvas_index"].sharding.is_fully_replicated
    for shard in out["label"].addressable_shards:
        np.testing.assert_array_equal(shard.data, held[shard.index])


def test_rows_that_devices_cannot_share_name_sizes_that_work():
    mesh = sharding.make_mesh()
    rows = sharding.batch_sharding(mesh)
    with pytest.raises(ConfigError, match="20 rows.*8 devices.*16, 24"):
        sharding.local_rows(rows, 20)
    with pytest.raises(ConfigError, match="20 rows.*8 devices.*16, 24"):
        sharding.to_global(rows, {"label": np.zeros(20)})
    assert isinstance(sharding.replicated(mesh), NamedSharding)
