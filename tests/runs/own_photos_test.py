"""A folder of photos trains by naming it, keeps its class names, and predicts with them."""

import numpy as np
import pytest
import tiny_runs
from PIL import Image

from deit_jax import cli
from deit_jax.checkpoint import read_variables
from deit_jax.errors import ConfigError

CLASSES = ("apple", "pear", "quince")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    r = np.random.RandomState(0)
    for split, count in (("train", 6), ("val", 2)):
        for k, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = r.randint(0, 80, (40 + 3 * i, 50, 3)) + np.eye(3, dtype=int)[k] * 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.jpg")
    (folder / "train" / "notes.txt").write_text("not an image")
    return folder


def options(photos, compilation_cache):
    return (
        "data.source=folder",
        f"data.path={photos}",
        compilation_cache,
        "train.batch_size=8",
        "eval.batch_size=8",
        *tiny_runs.NO_AUGMENTATION,
    )


def test_folder_trains_and_predicts(photos, tmp_path, compilation_cache, capsys, monkeypatch):
    tiny_runs.on_one_device(monkeypatch)
    config = tiny_runs.tiny("finetune.py", *options(photos, compilation_cache))
    results = tiny_runs.train(config, tmp_path / "run")
    assert results["eval/count"] == 6
    _, metadata = read_variables(tmp_path / "run")
    assert metadata["class_names"] == list(CLASSES)
    capsys.readouterr()
    photo = photos / "val" / "pear" / "0.jpg"
    assert cli.main(["predict", f"--checkpoint={tmp_path / 'run'}", str(photo)]) == 0
    out = capsys.readouterr().out
    assert str(photo) in out and all(name in out for name in CLASSES)


@pytest.mark.long
def test_weights_of_another_task_start_it(photos, tmp_path, compilation_cache, capsys, monkeypatch):
    """Ten classes of digits, another resolution: the head is initialized on request only."""
    tiny_runs.make_cheap(monkeypatch)
    digits = tiny_runs.tiny("quickstart.py:plain", compilation_cache, *tiny_runs.NO_AUGMENTATION)
    tiny_runs.train(digits, tmp_path / "digits")
    start = (f"init={tmp_path / 'digits'}", "model.image_size=48")
    with pytest.raises(ConfigError, match="drop_head"):
        tiny_runs.train(
            tiny_runs.tiny("finetune.py", *options(photos, compilation_cache), *start),
            tmp_path / "no",
        )
    capsys.readouterr()
    tiny_runs.train(
        tiny_runs.tiny(
            "finetune.py", *options(photos, compilation_cache), *start, "init_drop_head=true"
        ),
        tmp_path / "yes",
    )
    out = capsys.readouterr().out
    assert (
        "drop_head: the classification heads are initialized" in out
        and "position embedding (2, 2) -> (3, 3)" in out
    )
