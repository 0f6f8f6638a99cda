"""Saving, restoring, retention; damage is tested in damage_test.py."""

import functools
import json
import logging
import math
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from deit_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    SaveFailedError,
    StructureError,
    manager,
    read_variables,
)
from deit_jax.checkpoint.retention import Retention
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError
from deit_jax.train_state import TrainState

META = {"model": {"name": "tiny", "kwargs": {"depth": 2}}, "class_names": ["cat", "dog"]}
TX = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.adamw(1e-3, mu_dtype=jnp.bfloat16), {"kernel": True, "head": False}),
    optax.trace(0.9),
)


def init_state(key, *, ema=True, stats=True):
    params = {"kernel": jax.random.normal(key, (128, 256)), "head": {"bias": jnp.arange(3.0)}}
    batch_stats = {"norm": {"mean": jnp.array([jnp.nan, jnp.inf, -0.0])}} if stats else {}
    double = lambda tree: jax.tree.map(lambda x: x * 2, tree)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        ema_params=double(params) if ema else None,
        ema_batch_stats=double(batch_stats) if ema else None,
        opt_state=jax.tree.map(lambda x: x + 1, TX.init(params)),
    )


def make_mesh(data, fsdp):
    devices = np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


@functools.cache
def state_maker(mesh, **options):
    init = functools.partial(init_state, **options)
    shardings = sharding.tree_shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    return jax.jit(init, out_shardings=shardings)


def make_state(mesh=None, **options):
    return state_maker(mesh or make_mesh(1, 1), **options)(jax.random.key(0))


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


next_state = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)


def save_steps(folder, steps, *, metric=None, **options):
    with Checkpointer(folder, **options) as saver:
        for step in steps:
            metrics = {"top1": metric[step]} if metric and step in metric else None
            assert saver.save(step, make_state(), metadata=META, metrics=metrics)
        saver.wait()
        return saver.steps


def test_state_donated_right_after_saving_is_restored_bit_for_bit(tmp_path):
    state, wanted = make_state(make_mesh(2, 2)), {}
    with Checkpointer(tmp_path) as saver:
        for step in range(1, 6):
            state = next_state(state)
            wanted[step] = jax.device_get(state)
            assert saver.save(step, state, metadata=META)
            # The buffers that are being written are overwritten at once.
            state = next_state(next_state(state))
    with Checkpointer(tmp_path) as saver:
        restored = saver.restore(abstract(state))
    assert restored.step == 5
    assert_same_bits(jax.device_get(restored.state), wanted[5])
    assert {key: restored.metadata[key] for key in META} == META
    for path in tmp_path.glob("*"):
        one, _ = read_variables(path)
        assert_same_bits(one["params"], wanted[int(path.name)].params)


@pytest.mark.parametrize(
    "options", [{"ema": False}, {"stats": False}, {"ema": False, "stats": False}]
)
def test_states_without_averages_or_statistics(tmp_path, options):
    state = make_state(**options)
    with Checkpointer(tmp_path) as saver:
        saver.save(1, state, metadata={})
        assert_same_bits(saver.restore(abstract(state)).state, state)


@pytest.mark.parametrize("data, fsdp", [(8, 1), (1, 8), (2, 1), (1, 1)])
def test_restored_onto_another_mesh(tmp_path, data, fsdp):
    state = make_state(make_mesh(2, 2))
    with Checkpointer(tmp_path) as saver:
        saver.save(1, state, metadata={})
        where = sharding.tree_shardings(make_mesh(data, fsdp), state)
        wanted = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, where
        )
        restored = saver.restore(wanted).state
    assert_same_bits(jax.device_get(restored), jax.device_get(state))
    assert restored.params["kernel"].sharding == where.params["kernel"]


def test_nothing_saved_is_none_and_a_saved_step_is_not_written_again(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path / "new" / "checkpoints") as saver:
        assert saver.restore(abstract(state)) is None
        assert saver.save(3, state, metadata={})
        assert not saver.save(3, state, metadata={})


def test_every_structural_difference_is_listed_and_nothing_is_touched(tmp_path):
    save_steps(tmp_path, [1])
    other = make_state(ema=False)
    params = {
        "kernel": jnp.zeros((128, 255)),
        "head": {"bias": jnp.zeros(3, jnp.bfloat16)},
        "new": jnp.zeros(2),
    }
    wanted = TrainState(other.step, params, other.batch_stats, None, None, other.opt_state)
    with Checkpointer(tmp_path) as saver, pytest.raises(StructureError) as caught:
        saver.restore(wanted)
    text = str(caught.value)
    assert "params/kernel: float32[128, 256] in the checkpoint, float32[128, 255] wanted" in text
    assert "params/head/bias: float32[3] in the checkpoint, bfloat16[3] wanted" in text
    assert "params/new: not in the checkpoint" in text
    assert "ema/params/kernel: only in the checkpoint" in text
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    "options, kept",
    [
        ({"keep_latest": 2}, {6, 7}),
        ({"keep_latest": 1, "keep_every_steps": 3}, {3, 6, 7}),
        ({"keep_latest": 1, "keep_best": 1, "best_metric": "top1"}, {2, 7}),
        ({"keep_latest": 1, "keep_best": 2, "best_metric": "top1"}, {2, 4, 7}),
        ({"keep_latest": 1, "best_metric": "top1", "higher_is_better": False}, {1, 7}),
        ({"keep_latest": 1, "keep_best": 9, "best_metric": "top1"}, {1, 2, 4, 5, 7}),
        ({"keep_latest": 1, "keep_best": 0, "best_metric": "top1"}, {7}),
        ({"keep_latest": 1, "best_metric": "other"}, {7}),
    ],
)
def test_what_is_kept(options, kept):
    # NaN at 3 and null at 6 are worse than any number; nothing was measured at 7.
    saved = {
        1: {"top1": 0.1},
        2: {"top1": 0.5},
        3: {"top1": math.nan},
        4: {"top1": 0.3},
        5: {"top1": 0.3 - 1e-3},
        6: {"top1": None},
        7: {},
    }
    assert Retention(**options).steps_to_keep(saved) == kept


def test_retention_that_keeps_nothing_is_refused():
    with pytest.raises(ConfigError, match="keep_latest must be at least 1, not 0"):
        Retention(keep_latest=0)


def test_the_best_is_kept_after_a_restart(tmp_path):
    metric = {1: 0.2, 2: 0.6, 3: math.nan, 4: 0.4, 5: 0.1}
    options = {"keep_latest": 2, "keep_best": 1, "best_metric": "top1"}
    assert save_steps(tmp_path, range(1, 6), metric=metric, **options) == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4", "5"]
    with Checkpointer(tmp_path, **options) as saver:
        assert saver.steps == [2, 4, 5]


def test_variables_are_read_alone_on_the_host(tmp_path):
    save_steps(tmp_path / "checkpoints", [1, 2])
    state = jax.device_get(make_state())
    for part in ("train", "batch_stats", "params"):
        (tmp_path / "checkpoints" / "2" / part).rename(tmp_path / part)
    averaged, metadata = read_variables(tmp_path, ema=True)
    assert_same_bits(averaged, state.variables(ema=True))
    assert isinstance(averaged["params"]["kernel"], np.ndarray)
    assert {key: metadata[key] for key in META} == META
    for path in (tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "1" / ""):
        raw, _ = read_variables(path)
        assert_same_bits(raw, state.variables())


def test_a_relative_path_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert save_steps("run/checkpoints", [1]) == [1]
    assert read_variables("run")[1]["checkpoint"]["step"] == 1


def test_reading_variables_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a workdir"):
        read_variables(tmp_path)
    state = make_state(ema=False)
    with Checkpointer(tmp_path) as saver:
        saver.save(1, state, metadata={})
    with pytest.raises(ConfigError, match="ema=False"):
        read_variables(tmp_path, ema=True)


def test_metadata_is_json_and_says_what_is_not(tmp_path):
    state = make_state()
    with Checkpointer(tmp_path) as saver:
        with pytest.raises(TypeError, match=r"metadata\.image\.mean\[1\] is a set"):
            saver.save(1, state, metadata={"image": {"mean": (1, {2})}})
        assert saver.save(1, state, metadata={"lr": math.nan, "size": (1, 2), "n": np.int64(3)})
        saver.wait()
    stored = json.loads((tmp_path / "1" / "metadata" / "data.json").read_text())
    assert (stored["lr"], stored["size"], stored["n"]) == (None, [1, 2], 3)


def test_what_a_killed_run_left_behind_is_removed_and_never_chosen(tmp_path):
    save_steps(tmp_path, [1])
    for name in ("2.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-1234", "4.deleting"):
        (tmp_path / name / "params").mkdir(parents=True)
    with Checkpointer(tmp_path) as saver:
        assert saver.restore(abstract(make_state())).step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_disk_that_refuses_to_write_is_reported_then_stops_the_run(tmp_path, caplog):
    state = make_state()
    saver = Checkpointer(tmp_path, max_failures=2)
    assert saver.save(1, state, metadata={})
    saver.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Files can no longer grow beyond 8 kB, as on a disk that is almost full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        saver.save(2, state, metadata={})
        with pytest.raises(SaveFailedError, match="step 2"):
            saver.wait()
        saver.save(3, state, metadata={})
        with pytest.raises(SaveFailedError, match="2 checkpoints in a row.*step 3"):
            saver.save(4, state, metadata={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("deit_jax")]
    assert len(ours) == 2 and "MB free" in ours[0] and "the last saved is of step 1" in ours[0]
    with Checkpointer(tmp_path) as again:
        assert again.restore(abstract(state)).step == 1
    # Only now: orbax may still have been writing when its failure was reported.
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_one_good_save_forgives_the_failures_before_it(tmp_path, monkeypatch):
    state, begin = make_state(), manager.begin_save
    broken = [2, 3, 5]

    def sometimes(folder, *rest):
        if int(folder.name) in broken:
            raise OSError(28, "No space left on device")
        return begin(folder, *rest)

    monkeypatch.setattr(manager, "begin_save", sometimes)
    with Checkpointer(tmp_path, max_failures=3) as saver:
        done = [saver.save(step, state, metadata={}) for step in range(1, 7)]
    assert done == [True, False, False, True, False, True]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be made"):
        Checkpointer(tmp_path / "checkpoints")


def test_two_processes_do_not_train_in_one_workdir(tmp_path):
    code = (
        "import sys, os, time; from deit_jax.checkpoint import Checkpointer\n"
        "Checkpointer(sys.argv[1]); print(os.getpid(), flush=True); time.sleep(60)"
    )
    folder = tmp_path / "run" / "checkpoints"
    other = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    with other:
        pid = int(other.stdout.readline())
        with pytest.raises(CheckpointError, match=rf"pid {pid} on .*training in {tmp_path}/run"):
            Checkpointer(folder)
        other.kill()
    # The end of a process ends its claim; the same process may come back at any time.
    first = Checkpointer(folder)
    Checkpointer(folder).close()
    first.close()


def test_orbax_keeps_quiet_and_others_do_not(tmp_path, caplog):
    from absl import logging as absl_logging

    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.INFO)
    try:
        with caplog.at_level(logging.INFO):
            save_steps(tmp_path, [1, 2])
            absl_logging.info("heard")
    finally:
        absl_logging.set_verbosity(level)
    heard = [r for r in caplog.records if not r.name.startswith("deit_jax")]
    assert [r.getMessage() for r in heard if f"{os.sep}orbax{os.sep}" in r.pathname] == []
    assert "heard" in [r.getMessage() for r in heard]
    assert any("checkpoint of step 2 saved" in r.getMessage() for r in caplog.records)
