"""Every file of a checkpoint cut, changed or removed in turn; digests; nothing good left."""

import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deit_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    DamagedCheckpointError,
    read_variables,
)
from deit_jax.checkpoint.digest import digest_array, digest_tree
from deit_jax.distributed import sharding
from deit_jax.train_state import TrainState

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("dropped_reads_end_here"),
]


def _state(seed):
    params = {
        "blocks_0": {"kernel": jax.random.normal(jax.random.key(seed), (64, 64))},
        "bias": jnp.full((3,), float(seed)),
    }
    copy = jax.tree.map(lambda x: x + 1, params)
    return TrainState(jnp.int32(seed), params, {}, copy, {}, {"mu": copy})


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpointer(folder) as saver:
        for step in (1, 2):
            saver.save(step, _state(step), metadata={"name": "run"})
    return folder


def _damage(file, how):
    if how == "removed":
        file.unlink()
        return
    data = bytearray(file.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    else:
        data[len(data) * 2 // 3] ^= 0x10
    file.write_bytes(bytes(data))


def _same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    "how",
    [
        "flipped",
        pytest.param("cut", marks=pytest.mark.long),
        pytest.param("removed", marks=pytest.mark.long),
    ],
)
def test_damage_to_any_file_is_never_restored(two_steps, tmp_path, how, caplog):
    names = sorted(
        str(file.relative_to(two_steps / "2"))
        for file in (two_steps / "2").rglob("*")
        if file.is_file() and file.stat().st_size
    )
    fell_back = []
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(two_steps, folder)
        _damage(folder / "2" / name, how)
        caplog.clear()
        with Checkpointer(folder) as saver:
            restored = saver.restore(_state(0))
            assert _same(restored.state, _state(restored.step)), name
            assert restored.metadata["name"] == "run"
            if restored.step == 1:
                fell_back.append(name)
                assert saver.steps == [1]
                assert (folder / "damaged-2").is_dir() and not (folder / "2").exists()
                assert "set aside" in caplog.text
            else:
                assert restored.step == 2 and not (folder / "damaged-2").exists()
        shutil.rmtree(folder)
    data_files = [name for name in names if "/d/" in name and "process_" not in name]
    essential = {*data_files, "manifest/data.json", "metadata/data.json"}
    assert len(data_files) >= 3 and essential <= set(fell_back)


def _another_step(folder):
    shutil.copytree(folder / "1", folder / "3")


def _another_run(folder):
    with Checkpointer(folder) as saver:
        saver.save(3, _state(3), metadata={"name": "another run"})


def _deep_manifest(folder):
    shutil.copytree(folder / "2", folder / "3")
    (folder / "3" / "manifest" / "data.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    "put, words",
    [
        (_another_step, "holds step 1"),
        (_another_run, "3 is of another run: name"),
        (_deep_manifest, "cannot be read: "),
        (lambda folder: (folder / "3").touch(), "cannot be read: Not a directory"),
        (lambda folder: (folder / "3").symlink_to("3"), "cannot be read: Too many levels"),
    ],
)
def test_what_is_no_checkpoint_of_this_step_and_run_is_set_aside(
    two_steps, tmp_path, put, words, caplog
):
    folder = pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))
    put(folder)
    for name in ("007", "123456789012"):
        (folder / name).mkdir()
    with Checkpointer(folder, keep_latest=9) as saver:
        foreign = lambda metadata: "" if metadata["name"] == "run" else "name"
        assert saver.restore(_state(0), foreign=foreign).step == 2
        assert saver.steps == [1, 2]
        assert saver.save(3, _state(3), metadata={"name": "run"})
    assert words in caplog.text
    assert "damaged-3" in {path.name for path in folder.iterdir()}
    assert read_variables(tmp_path)[0]["params"]["bias"][0] == 3


def _flip_one_value(step_folder):
    """One bit of the array data itself, in the part that holds params."""
    file = max((step_folder / "params").rglob("d/*"), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def test_reading_damaged_variables_names_them_and_takes_no_older_ones(two_steps, tmp_path):
    folder = pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))
    _flip_one_value(folder / "2")
    with pytest.raises(DamagedCheckpointError, match="params"):
        read_variables(tmp_path)
    assert read_variables(folder / "1")[0]["params"]["bias"][0] == 1
    # The other parts are sound and do not depend on it.
    assert read_variables(folder / "2", ema=True)[0]["params"]["bias"][0] == 3


def test_the_run_stops_when_no_checkpoint_is_sound_and_stops_again(two_steps, tmp_path):
    folder = pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))
    _flip_one_value(folder / "1")
    (folder / "2" / "manifest" / "data.json").unlink()
    for _ in range(2):
        with Checkpointer(folder) as saver, pytest.raises(CheckpointError) as caught:
            saver.restore(_state(0))
        assert "1:" in str(caught.value) and "2:" in str(caught.value)
        assert "refusing to start from scratch" in str(caught.value)
        assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_a_run_does_not_start_over_beside_damaged_checkpoints(two_steps, tmp_path):
    folder = pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))
    shutil.rmtree(folder / "1")
    (folder / "2").rename(folder / "damaged-2")
    with Checkpointer(folder) as saver, pytest.raises(CheckpointError, match="damaged-2"):
        saver.restore(_state(0))


def test_empty_and_half_deleted_folders_are_passed_over(two_steps, tmp_path, caplog):
    folder = pathlib.Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))
    (folder / "9").mkdir()
    shutil.rmtree(folder / "2" / "train")
    with Checkpointer(folder) as saver, caplog.at_level(logging.WARNING):
        assert saver.restore(_state(0)).step == 1
        # The way is free for the steps that are trained again.
        assert saver.save(2, _state(2), metadata={})
        saver.wait()
        assert saver.restore(_state(0)).step == 2
    assert {path.name for path in folder.iterdir()} == {"1", "2", "damaged-2", "damaged-9"}


def test_trouble_of_the_machine_is_not_taken_for_damage(two_steps, tmp_path, monkeypatch):
    from deit_jax.checkpoint import io

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    folder = shutil.copytree(two_steps, tmp_path / "checkpoints")
    monkeypatch.setattr(io.ocp, "load_checkpointables", refuse)
    with Checkpointer(folder) as saver, pytest.raises(PermissionError):
        saver.restore(_state(0))
    assert sorted(path.name for path in pathlib.Path(folder).iterdir()) == ["1", "2"]


ARRAYS = {
    "kernel": np.random.RandomState(0).randn(128, 160).astype(np.float32),
    "moment": np.random.RandomState(1).randn(7, 3).astype(ml_dtypes.bfloat16),
    "count": np.array(7, np.int32),
    "mask": np.array([True, False, True]),
    "bytes": np.arange(251, dtype=np.uint8),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("fsdp", [1, 4, 8])
def test_digest_does_not_depend_on_where_an_array_lies(fsdp):
    mesh = sharding.make_mesh(fsdp=fsdp)
    placed = jax.device_put(ARRAYS, sharding.tree_shardings(mesh, ARRAYS))
    expected = {name: digest_array(value) for name, value in ARRAYS.items()}
    assert digest_tree(placed) == expected
    assert digest_tree(jax.tree.map(jnp.asarray, ARRAYS)) == expected


@pytest.mark.parametrize("name", ["kernel", "moment", "count", "bytes"])
def test_no_flipped_bit_escapes_the_digest(name):
    value, rng = ARRAYS[name], np.random.RandomState(0)
    before = digest_array(value)
    for _ in range(200):
        changed = value.copy()
        flat = changed.reshape(-1).view(np.uint8)
        flat[rng.randint(flat.size)] ^= 1 << rng.randint(8)
        assert digest_array(changed) != before


def test_digest_sees_elements_that_change_places():
    value = ARRAYS["kernel"]
    assert digest_array(value[::-1]) != digest_array(value)
    assert digest_array(np.roll(value, 1)) != digest_array(value)
