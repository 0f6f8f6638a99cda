"""Rows that change their device: where they end up, and that no device gets more than its own."""

import jax
import numpy as np
import pytest

from deit_jax import data
from deit_jax.distributed import exchange, sharding


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_rows_arrive_as_if_they_were_indexed(shape):
    mesh = sharding.make_mesh(data=shape[0], fsdp=shape[1])
    draw = np.random.RandomState(0)
    # Of 32 rows: in any order, all in place, all of one device's, some several times.
    orders = np.stack([draw.permutation(32)[:24], np.arange(24), np.arange(24) % 4, [31] * 24])
    x = draw.randint(0, 256, (32, 5, 3)).astype(np.uint8)
    shared = jax.device_put(x, sharding.batch_sharding(mesh))
    move = jax.jit(exchange.make_exchange(mesh, orders, 32))
    for number, order in enumerate(orders):
        moved = move(shared, number)
        np.testing.assert_array_equal(moved, x[order])
        assert moved.sharding.is_equivalent_to(shared.sharding, 3)


def test_rounds_send_everything_once():
    counts = np.random.RandomState(0).randint(0, 4, (9, 9))
    rounds = exchange.plan(counts)
    for pairs, rows in rounds:
        senders, receivers = zip(*pairs, strict=True)
        assert len(set(senders)) == len(set(receivers)) == len(pairs)
        assert max(counts[pair] for pair in pairs) == rows
    sent = [pair for pairs, _ in rounds for pair in pairs]
    assert len(set(sent)) == len(sent)
    assert set(sent) == {(i, j) for i, j in np.argwhere(counts) if i != j}


@pytest.mark.parametrize(
    "devices, mix_group, rows", [(8, 256, 134), (8, 64, 146), (64, 256, 31), (256, 256, 12)]
)
def test_a_device_receives_little_more_than_its_rows_of_imagenet(devices, mix_group, rows):
    """1,024 rows, three of a photo; the crops of all canvases are more than 1,024."""
    orders = data.canvas_orders(1024, 3, mix_group)
    canvases = data.canvas_count(1024, 3, devices)
    counts = exchange._counts(3 * orders, 3 * canvases, devices).max(0)
    assert sum(r.rows for r in exchange.plan(counts)) == rows


def test_rows_that_devices_cannot_share_are_refused():
    with pytest.raises(ValueError, match="8 devices cannot share 20 and 24 rows"):
        exchange.make_exchange(sharding.make_mesh(), np.zeros((1, 24), int), 20)
