"""The order of the records: permutations, repeats, rows, windows, as functions of the step."""

import numpy as np
import pytest
from reference.make_sampler import SETTINGS

from deit_jax import data
from deit_jax.data import order as order_lib
from deit_jax.errors import ConfigError


def make_order(**overrides):
    sizes = {"n_records": 400, "batch_size": 96, "repeats": 3, "mix_group": 32, "seed": 7}
    return order_lib.TrainOrder(**(sizes | overrides))


def record_of_rows(index):
    """Record of every global row, int64 [B]."""
    return index.record if index.canvas_index is None else index.record[index.canvas_index]


def test_imagenet_numbers_of_the_published_recipe():
    assert data.steps_per_epoch(1_281_167, 1024) == 1251
    assert data.distinct_images_per_epoch(1_281_167, 1024, 3) == 427_008
    assert data.canvas_count(1024, 3, 8) == 344


@pytest.mark.parametrize("records, ranks, images", SETTINGS)
def test_batches_are_those_of_the_official_sampler(vectors, records, ranks, images):
    """tests/reference/make_sampler.py: a rank's batch is a mix group."""
    stored = np.load(vectors / "sampler.npz")
    name = f"{records}_{ranks}_{images}"
    sizes = {"n_records": records, "batch_size": ranks * images, "repeats": 3}
    order = order_lib.TrainOrder(**sizes, mix_group=images)
    assert order.steps_per_epoch == stored[f"{name}_steps"]
    permutation = order_lib.epoch_permutation(records, 0, 0)
    for step, batch in zip((0, order.steps_per_epoch - 1), stored[f"{name}_batches"], strict=True):
        assert np.array_equal(record_of_rows(order(step)), permutation[batch].ravel())


def test_fewer_records_than_the_official_sampler_can_round_are_all_used():
    assert data.steps_per_epoch(200, 20, 3) == 10
    assert data.steps_per_epoch(300, 20, 1) == 15


@pytest.mark.parametrize("n", [1, 2, 3, 1797, 65537])
def test_an_epoch_is_a_permutation(n):
    assert np.array_equal(np.sort(order_lib.epoch_permutation(n, 0, 3)), np.arange(n))
    lengths = [n // 2, n - n // 2, 5]
    windowed = order_lib.window_permutation(lengths, 2, 0, 3)
    assert np.array_equal(np.sort(windowed), np.arange(n + 5))


def test_epochs_are_uncorrelated():
    n = 50_000
    orders = [order_lib.epoch_permutation(n, 0, e) for e in range(4)]
    for i in range(4):
        for j in range(i):
            assert abs(np.corrcoef(orders[i], orders[j])[0, 1]) < 5 / np.sqrt(n)


def test_known_epoch_never_changes():
    """The order is part of a run's identity: if this fails, old runs no longer resume."""
    assert order_lib.epoch_permutation(10, 0, 0).tolist() == [3, 7, 6, 4, 1, 0, 2, 8, 5, 9]
    windowed = order_lib.window_permutation([4, 3, 3], 2, 0, 0)
    assert windowed.tolist() == [7, 3, 1, 9, 0, 2, 8, 5, 4, 6]


@pytest.mark.parametrize(
    ("batch_size", "mix_group", "repeats"), [(96, 32, 3), (64, 16, 3), (100, 50, 2)]
)
def test_repeats_are_in_one_batch_and_in_different_groups(batch_size, mix_group, repeats):
    order = make_order(batch_size=batch_size, mix_group=mix_group, repeats=repeats)
    for step in (0, 1, 3, 10_000_000):
        rows = record_of_rows(order(step))
        assert (rows >= 0).all()
        groups = rows.reshape(-1, mix_group)
        assert all(len(set(group)) == mix_group for group in groups), "copies in one mix group"
        counts = np.unique(rows, return_counts=True)[1]
        # Only the images at the ends of the batch may have fewer copies in it.
        assert (counts == repeats).sum() >= len(counts) - 2 and counts.max() == repeats


def test_an_epoch_has_a_third_of_the_images_three_times():
    order = make_order(n_records=300, batch_size=60, mix_group=20)
    assert order.steps_per_epoch == 4, "of 256 images, as in the official sampler"
    rows = np.concatenate([record_of_rows(order(step)) for step in range(4)])
    records, counts = np.unique(rows, return_counts=True)
    assert len(records) == data.distinct_images_per_epoch(300, 60, 3) == 80
    assert (counts == 3).all()
    assert set(records) == set(order_lib.epoch_permutation(300, 7, 0)[:80])
    assert not set(record_of_rows(order(4))) <= set(records), "each epoch has a different order"


def test_without_repeats_an_epoch_has_every_image_once():
    order = make_order(n_records=100, batch_size=20, repeats=1, mix_group=10)
    rows = np.concatenate([record_of_rows(order(step)) for step in range(5)])
    assert np.array_equal(np.sort(rows), np.arange(100))
    assert order(0).canvas_index is None


def test_batch_follows_the_documented_formula():
    order = make_order()
    rows = record_of_rows(order(5))
    permutation = np.random.RandomState([7, 2]).permutation(400)
    for p in range(96):
        assert rows[(p % 3) * 32 + p // 3] == permutation[(1 * 96 + p) // 3]


def test_canvases_are_static_and_divide_among_devices():
    order = make_order(batch_size=64, mix_group=16, device_count=8)
    sizes = {len(order(step).record) for step in range(12)}
    assert sizes == {24}
    assert all((order(step).record[order(step).canvas_index] >= 0).all() for step in range(12))


@pytest.mark.parametrize("batch_size, repeats, orders", [(64, 3, 3), (96, 3, 1), (60, 8, 2)])
def test_rows_have_their_canvases_in_a_few_orders(batch_size, repeats, orders):
    sizes = {"batch_size": batch_size, "repeats": repeats, "mix_group": 4}
    known = {order.tobytes() for order in data.canvas_orders(**sizes)}
    order = make_order(**sizes)
    assert {order(step).canvas_index.tobytes() for step in range(12)} == known
    assert len(known) == orders


def test_windows_are_read_one_after_the_other():
    lengths = (10, 7, 9, 12, 8, 11)
    bounds = np.cumsum(lengths)
    windowed = order_lib.window_permutation(lengths, 2, 0, 0)
    files = np.searchsorted(bounds, windowed, side="right")
    position = 0
    seen = set()
    while position < len(files):
        members = set(files[position : position + 1])
        members |= set(files[position : position + 15]) - seen
        size = sum(lengths[i] for i in members)
        assert len(members) == 2 and set(files[position : position + size]) == members
        seen |= members
        position += size
    assert len({tuple(order_lib.window_permutation(lengths, 2, 0, e)) for e in range(4)}) == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_records": 90}, "batch_size must be at most 90, the number of training images, not 96"),
        ({"batch_size": 300}, "at most 256, .* rounded down to a multiple of 256, .*, not 300"),
        ({"mix_group": 40}, "mix_group 40 does not divide"),
        ({"device_count": 36}, "not divisible by the 36 devices"),
        ({"repeats": 0}, "repeats must be at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
    ],
)
def test_sizes_that_are_not_compatible(overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_order(**overrides)
