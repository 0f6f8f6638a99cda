"""Every shipped recipe and variant runs: three steps, an evaluation, a checkpoint, a second start."""

import json

import jax
import numpy as np
import pytest
import runs

from deit_jax import config as config_lib
from deit_jax.checkpoint import read_variables
from deit_jax.metrics import read_jsonl


def shipped() -> list[str]:
    """`file.py:variant` of every recipe, found by looking, so that none can be forgotten."""
    found = []
    for file in sorted((runs.ROOT / "configs").glob("*.py")):
        if file.name == "common.py":
            continue
        names = {}
        exec(compile(file.read_text(), str(file), "exec"), names)
        found += [f"{file.name}:{variant}" for variant in names.get("VARIANTS", [""])]
    return found


@pytest.mark.parametrize("spec", shipped())
def test_recipe_runs_and_goes_on(spec, tmp_path, compilation_cache, tiny_teacher, capfd):
    options = [*runs.DIGITS, compilation_cache]
    if runs.load(spec).loss.distillation != "none":
        options += [f"teacher.init={tiny_teacher}", "teacher.name=regnety_002"]
    first = runs.train(runs.tiny(spec, *options, "train.stop_at_step=1"), tmp_path)
    results = runs.train(runs.tiny(spec, *options), tmp_path)
    assert first.keys() == results.keys()
    assert results["eval/count"] == 355
    records = list(read_jsonl(tmp_path / "metrics.jsonl"))
    steps = [record["step"] for record in records if "train/loss" in record]
    assert steps == [1, 2, 3], "the second start goes on after step 1, and no step is logged twice"
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        config_lib.to_json(runs.tiny(spec, *options))
    )
    variables, metadata = read_variables(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    assert metadata["class_names"] == [str(digit) for digit in range(10)]
    out, err = capfd.readouterr()
    assert "Total:" in out and "images/s" in out and "ETA" in out
    assert err == "", "nothing but the run's own lines on the terminal"


def test_going_on_equals_not_stopping(tmp_path, compilation_cache):
    """Bit for bit, on the same devices."""
    def options(**train):
        return runs.tiny(
            "quickstart.py:plain", compilation_cache, "train.total_steps=4",
            "train.eval_every_steps=0", *(f"train.{k}={v}" for k, v in train.items()),
        )

    runs.train(options(), tmp_path / "whole")
    runs.train(options(stop_at_step=3), tmp_path / "parts")
    runs.train(options(), tmp_path / "parts")
    whole, _ = read_variables(tmp_path / "whole")
    parts, _ = read_variables(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_finished_run_has_nothing_to_do(tmp_path, compilation_cache, capsys):
    config = runs.tiny("quickstart.py:plain", compilation_cache)
    runs.train(config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    runs.train(config, tmp_path)
    assert "already at step 3 of 3" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("recipe", ["deit.py:ti", "deit_distilled.py:ti"])
def test_imagenet_photos_through_the_shipped_configs(
    recipe, tfds_dir, tmp_path, compilation_cache
):
    photos = [f"data.data_dir={tfds_dir}", compilation_cache]
    if "distilled" in recipe:
        teacher = runs.tiny(
            "quickstart.py:teacher", *photos, "data.source=tfds", "data.name=imagenet2012",
            "model.image_size=32", "augment.mean=0.485,0.456,0.406",
        )
        runs.train(teacher, tmp_path / "teacher")
        photos += [f"teacher.init={tmp_path / 'teacher'}", "teacher.name=regnety_002"]
    config = runs.tiny(recipe, *photos)
    results = runs.train(config, tmp_path / "run")
    assert results["eval/count"] == results["eval_ema/count"] == 100
    _, metadata = read_variables(tmp_path / "run", ema=True)
    assert metadata["class_names"][0] == "n01440764" and len(metadata["class_names"]) == 1000
