"""Checkpoints in a bucket: commits, retention, every object damaged in turn, copied runs."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import storage
from deit_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    SaveFailedError,
    layout,
    read_variables,
)
from deit_jax.storage import lease, process
from deit_jax.train_state import TrainState

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("dropped_reads_end_here"),
]


def state_of(seed):
    params = {"kernel": jax.random.normal(jax.random.key(seed), (64, 64))}
    return TrainState(jnp.int32(seed), params, {}, None, None, {"mu": params})


def save(folder, *steps, **options):
    with Checkpointer(folder, **options) as saver:
        for step in steps:
            saver.save(step, state_of(step), metadata={"name": "run"})


def kernel(step):
    return np.asarray(state_of(step).params["kernel"])


@pytest.fixture
def folder(bucket):
    return storage.path(f"gs://{bucket}/run/checkpoints")


def test_steps_are_saved_kept_and_restored(folder):
    save(folder, 1, 2, 3, keep_latest=2)
    assert layout.steps_in(folder) == [2, 3]
    assert sorted(path.name for path in folder.iterdir()) == ["2", "3"]
    with Checkpointer(folder) as saver:
        restored = saver.restore(state_of(0))
    assert restored is not None and restored.step == 3
    np.testing.assert_array_equal(restored.state.params["kernel"], kernel(3))
    np.testing.assert_array_equal(read_variables(folder.parent)[0]["params"]["kernel"], kernel(3))
    found = read_variables(folder / "2")[0]["params"]["kernel"]
    np.testing.assert_array_equal(found, kernel(2))


def test_a_step_that_was_not_committed_is_removed(gcs, bucket, folder):
    save(folder, 1, 2)
    for name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
        del gcs.buckets[bucket][f"run/checkpoints/2/{name}"]
    assert layout.steps_in(folder) == [1]
    with Checkpointer(folder) as saver:
        assert saver.restore(state_of(0)).step == 1
    assert not gcs.names(bucket, "run/checkpoints/2/")


def test_a_run_that_was_copied_into_a_bucket_is_whole(gcs, bucket, folder, tmp_path):
    save(tmp_path / "checkpoints", 1, 2)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            name = file.relative_to(tmp_path).as_posix()
            gcs.put(bucket, f"run/{name}", file.read_bytes())
    with Checkpointer(folder) as saver:
        assert saver.restore(state_of(0)).step == 2
    save(folder, 3)
    assert layout.steps_in(folder) == [1, 2, 3]


@pytest.mark.parametrize(
    "how, every",
    [
        ("flipped", 5),
        pytest.param("flipped", 1, marks=pytest.mark.long),
        pytest.param("removed", 1, marks=pytest.mark.long),
    ],
)
def test_damage_to_any_object_is_never_restored(gcs, bucket, folder, how, every, caplog):
    save(folder, 1, 2)
    objects, fallen_back = dict(gcs.buckets[bucket]), 0
    for name in gcs.names(bucket, "run/checkpoints/2/")[::every]:
        content = bytearray(objects[name].content)
        if how == "removed":
            del gcs.buckets[bucket][name]
        elif content:
            content[len(content) * 2 // 3] ^= 0x10
            gcs.put(bucket, name, bytes(content))
        with Checkpointer(folder) as saver, caplog.at_level(logging.CRITICAL):
            restored = saver.restore(state_of(0))
        np.testing.assert_array_equal(restored.state.params["kernel"], kernel(restored.step))
        if restored.step == 1:
            fallen_back += 1
            assert layout.steps_in(folder) == [1]
            kept = gcs.names(bucket, "run/checkpoints/damaged-2/")
            # All that there was is kept for whoever looks into it.
            assert len(kept) == len(objects) // 2 - (how == "removed")
        gcs.buckets[bucket].clear()
        gcs.buckets[bucket].update(objects)
    assert fallen_back >= 5 // every + 1


def test_nothing_good_left_is_no_reason_to_start_over(gcs, bucket, folder):
    save(folder, 1)
    for name in gcs.names(bucket, "run/checkpoints/1/params/"):
        gcs.put(bucket, name, b"no")
    with Checkpointer(folder) as saver, pytest.raises(CheckpointError, match="refusing to start"):
        saver.restore(state_of(0))


def test_a_store_that_refuses_is_not_damage(gcs, bucket, folder):
    save(folder, 1)
    saver = Checkpointer(folder)
    gcs.forbidden.add(bucket)
    with pytest.raises(Exception, match="permission|Forbidden|PERMISSION"):
        saver.restore(state_of(0))
    gcs.forbidden.clear()
    saver.close()
    assert layout.steps_in(folder) == [1] and not layout.damaged_in(folder)


def test_a_process_that_lost_its_lease_writes_nothing_more(gcs, bucket, folder):
    saver = Checkpointer(folder)
    saver.save(1, state_of(1), metadata={})
    saver.wait()
    record = folder.parent / ".checkpoints.lock"
    stolen = record.read_text().replace(f'"pid": {process.this_process().pid}', '"pid": 1')
    stolen = stolen.replace('"nonce": "', '"nonce": "another')
    record.write_text(stolen)
    with pytest.raises(SaveFailedError, match="has taken over gs://"):
        saver.save(2, state_of(2), metadata={})
    saver.close()
    assert layout.steps_in(folder) == [1] and record.exists()
    assert lease.EXPIRES_S > 2 * lease.RENEW_S
