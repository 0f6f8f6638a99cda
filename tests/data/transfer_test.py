"""The transfer thread: order, depth, waiting time, errors, closing."""

import threading
import time

import jax
import numpy as np
import pytest

from deit_jax import data


class Counting:
    """0, 1, 2, ... counting those taken."""

    def __init__(self, n=10):
        self.taken, self.n, self.closed = 0, n, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self.n:
            raise StopIteration
        self.taken += 1
        return {"x": np.full(3, self.taken - 1)}

    def close(self):
        self.closed += 1


def test_order_is_kept_and_arrays_are_on_the_device():
    batches = Counting()
    with data.prefetch_to_device(batches, jax.device_put) as ahead:
        values = [b["x"] for b in ahead]
    assert all(isinstance(v, jax.Array) for v in values)
    assert [int(v[0]) for v in values] == list(range(10))
    assert batches.closed == 1 and list(ahead) == []


def test_two_batches_ahead_and_no_more():
    batches = Counting(n=100)
    with data.prefetch_to_device(batches, jax.device_put) as ahead:
        next(ahead)
        deadline = time.monotonic() + 5
        while batches.taken < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert batches.taken == 3


def test_health_of_the_host_batches_counts_what_was_transferred():
    source = data.open_data(source="digits").eval
    host = data.eval_batches(source, batch_size=100, canvas=7, image_size=7, crop_ratio=1.0)
    with data.prefetch_to_device(host, lambda b: b) as ahead:
        assert len(list(ahead)) == 4
    assert (host.health.images, host.health.shrunk, host.health.corrupt) == (355, 355, 0)


def test_errors_come_out_in_their_place():
    def put(batch):
        if batch["x"][0] == 2:
            raise RuntimeError("transfer failed")
        return batch

    before = threading.active_count()
    ahead = data.prefetch_to_device(Counting(), put)
    assert [int(next(ahead)["x"][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(RuntimeError, match="transfer failed"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    assert threading.active_count() == before


def test_dropping_it_ends_the_thread():
    before = threading.active_count()
    ahead = data.prefetch_to_device(Counting(n=1000), lambda b: b)
    next(ahead)
    del ahead
    assert threading.active_count() == before
