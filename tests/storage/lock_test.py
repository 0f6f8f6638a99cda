"""One process at a time: locks on this machine, leases in a bucket."""

import dataclasses
import multiprocessing
import os
import signal
import threading
import time

import pytest

from deit_jax import storage
from deit_jax.storage import process
from deit_jax.storage.lease import Lease

ELSEWHERE = process.Process("pid 7 on elsewhere", "another machine", 7, "1")
FAST = {"renew_s": 0.1, "expires_s": 1.0}


@pytest.fixture
def path(bucket):
    return storage.path(f"gs://{bucket}/run/.checkpoints.lock")


@pytest.fixture(params=["local", "gs"])
def either(request, tmp_path):
    return tmp_path / ".lock" if request.param == "local" else request.getfixturevalue("path")


def hold(url, environment, ready):
    os.environ.update(environment)
    kept = storage.Lock(storage.path(url))
    ready.set()
    time.sleep(100)
    kept.release()


@pytest.fixture
def holder(gcs):
    """Starts processes that take a lock and keep it; ends them."""
    children = []
    context = multiprocessing.get_context("spawn")

    def start(path):
        ready = context.Event()
        child = context.Process(target=hold, args=(str(path), gcs.environment(), ready))
        child.start()
        children.append(child)
        assert ready.wait(60)
        return child

    yield start
    for child in children:
        child.kill()
        child.join()


def test_the_lock_of_a_killed_process_is_free_at_once(either, holder):
    child = holder(either)
    os.kill(child.pid, signal.SIGKILL)
    # Not waited for: its number is still taken.
    time.sleep(0.2)
    begun = time.monotonic()
    storage.Lock(either).release()
    assert time.monotonic() - begun < 2


def test_a_second_process_is_refused_by_name(tmp_path, holder):
    child = holder(tmp_path / ".lock")
    with pytest.raises(storage.LockedError, match=f"pid {child.pid} on"):
        storage.Lock(tmp_path / ".lock")


def test_the_same_process_may_take_it_again(either):
    first = storage.Lock(either)
    second = storage.Lock(either)
    second.confirm()
    if storage.is_remote(either):
        with pytest.raises(storage.LockedError):
            first.confirm()
    first.release()
    second.release()


def test_a_lease_that_is_renewed_refuses_others(path):
    kept = Lease(path, **FAST)
    begun = time.monotonic()
    with pytest.raises(storage.LockedError, match="locked by pid"):
        Lease(path, process=ELSEWHERE, **FAST)
    assert time.monotonic() - begun < 1
    time.sleep(1.5)
    with pytest.raises(storage.LockedError):
        Lease(path, process=ELSEWHERE, **FAST)
    kept.release()
    Lease(path, process=ELSEWHERE, **FAST).release()


def test_a_lease_of_another_machine_expires(path):
    """Of one that ends without a word, as after a preemption."""
    dead = Lease(path, renew_s=100, process=ELSEWHERE)
    begun = time.monotonic()
    mine = Lease(path, **FAST)
    assert time.monotonic() - begun < 3
    with pytest.raises(storage.LockedError):
        dead.confirm()
    dead.release()
    mine.confirm()
    mine.release()
    assert not path.exists()


def test_an_old_lease_is_taken_over_without_waiting(gcs, path):
    Lease(path, renew_s=100, process=ELSEWHERE)
    stored = gcs.buckets[path.parent.parent.name]["run/.checkpoints.lock"]
    stored.updated = "2020-01-01T00:00:00.000Z"
    begun = time.monotonic()
    Lease(path).release()
    assert time.monotonic() - begun < 1


def test_of_many_that_start_at_once_one_wins(path):
    results = []

    def start(number):
        who = dataclasses.replace(ELSEWHERE, pid=number, text=f"pid {number}")
        try:
            results.append(Lease(path, process=who, **FAST))
        except storage.LockedError:
            pass

    threads = [threading.Thread(target=start, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 1
    results[0].confirm()
    results[0].release()


def test_a_lease_survives_an_outage_a_lost_answer_and_its_removal(gcs, path):
    kept = Lease(path, **FAST)
    with gcs.outage(1.5):
        kept.confirm()
    # As if the answer to a renewal had been lost: the generation is not the one we know.
    kept._generation -= 1
    kept.confirm()
    path.unlink()
    kept.confirm()
    assert path.exists()
    kept.release()
    assert not path.exists()


def test_the_lock_file_of_a_run_that_was_copied_is_no_lease(gcs, path):
    gcs.put(path.parent.parent.name, "run/.checkpoints.lock", b"pid 1 on elsewhere")
    begun = time.monotonic()
    Lease(path).release()
    assert time.monotonic() - begun < 2
