"""`which=best`: every command and option that reads a run reads the step that it kept as best."""

import json

import jax
import numpy as np
import pytest
import tiny_runs
from PIL import Image

from deit_jax import cli, models, pretrained
from deit_jax.checkpoint import Checkpointer
from deit_jax.train import experiment
from deit_jax.train_state import TrainState

METRIC = "eval/class/top1"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps: 1 is the best, with ones in its parameters, 2 the latest, with twos."""
    config = tiny_runs.tiny("quickstart.py:plain")
    model = models.create_model(num_classes=10, **config.model)
    abstract = jax.eval_shape(lambda: models.init_variables(model, jax.random.key(0)))
    workdir = tmp_path_factory.mktemp("run")
    arguments = {k: v for k, v in config.model.to_dict().items() if k != "name"}
    metadata = {
        "model": {"name": config.model.name, "kwargs": arguments | {"num_classes": 10}},
        "class_names": [str(digit) for digit in range(10)],
        "config": {},
        "image": {"crop_ratio": 1.0},
    }
    with Checkpointer(workdir / "checkpoints", keep_latest=1, best_metric=METRIC) as saver:
        for step, top1 in ((1, 0.75), (2, 0.5)):
            params = jax.tree.map(lambda x, n=step: jax.numpy.full(x.shape, n, x.dtype), abstract)
            state = TrainState(jax.numpy.int32(step), params["params"], {}, None, None, {})
            saver.save(step, state, metadata=metadata, metrics={METRIC: top1})
    return workdir


def value_of(variables):
    (value,) = {float(x) for leaf in jax.tree.leaves(variables) for x in np.unique(leaf)}
    return value


def test_loading_and_describing(run):
    for which, value in (("latest", 2), ("best", 1), ("1", 1), ("2", 2)):
        loaded = pretrained.load_checkpoint(run, which=which)
        assert value_of(loaded.variables) == value
        assert pretrained.describe(run, which=which).label == loaded.label
    assert loaded.label == f"step 2 of {run}"
    assert pretrained.load_checkpoint(run).label == str(run)


def test_start_and_teacher_of_a_run(run):
    best = f"best of {run}: step 1, {METRIC} 0.75"
    options = [f"init={run}", "init_which=best", f"teacher.init={run}", "teacher.which=best"]
    built = experiment.build(tiny_runs.tiny("quickstart.py:plain", *options[:2]))
    assert value_of(built.start.variables) == 1
    assert f"from {best}" in str(built.start.report)
    distilled = experiment.build(tiny_runs.tiny("quickstart.py:student", *options[2:]))
    assert value_of(distilled.teacher.variables) == 1
    assert best in distilled.teacher.description


def test_commands(run, tmp_path, capsys):
    best = f"best of {run}: step 1, {METRIC} 0.75"
    photo = tmp_path / "digit.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photo)
    report = tmp_path / "report.json"
    config = f"--config={tiny_runs.ROOT / 'configs/quickstart.py'}:plain,tiny"
    for arguments in (
        ["convert", run, tmp_path / "best.safetensors"],
        ["predict", f"--checkpoint={run}", photo],
        ["evaluate", f"--checkpoint={run}", config, f"--json={report}"],
    ):
        assert cli.main([*map(str, arguments), "--which=best"]) == 0
        assert best in capsys.readouterr().out, arguments[0]
    assert value_of(pretrained.load_checkpoint(tmp_path / "best.safetensors").variables) == 1
    assert json.loads(report.read_text())["checkpoint"] == best
    assert cli.main(["convert", str(run), str(tmp_path / "no"), "--which=3"]) == 2
    assert capsys.readouterr().err.endswith("has no step 3; steps: 1, 2\n")
