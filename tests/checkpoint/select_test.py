"""Which step of a run is read: the latest, the best, or one by its number."""

import math

import pytest
from checkpoint.damage_test import _flip_one_value
from checkpoint.manager_test import save_steps

from deit_jax.checkpoint import DamagedCheckpointError, read_metadata, read_variables, select_step
from deit_jax.errors import ConfigError


def test_latest_best_and_any_step(tmp_path):
    metric = {1: 0.2, 2: 0.6, 3: math.nan, 4: 0.4, 5: 0.1}
    save_steps(tmp_path, range(1, 6), metric=metric, keep_latest=2, best_metric="top1")
    best = select_step(tmp_path, which="best")
    assert best.folder == tmp_path / "2"
    assert best.selection == f"best of {tmp_path}: step 2, top1 0.6"
    for which, step in (("best", 2), ("latest", 5), ("4", 4)):
        assert read_variables(tmp_path, which=which)[1]["checkpoint"]["step"] == step
        assert read_metadata(tmp_path, which=which)["checkpoint"]["step"] == step
    with pytest.raises(ConfigError, match="has no step 3; steps: 2, 4, 5"):
        read_variables(tmp_path, which="3")
    with pytest.raises(ConfigError, match="latest, best or a step, not 'newest'"):
        read_variables(tmp_path, which="newest")


def test_a_run_without_a_best_says_why(tmp_path):
    save_steps(tmp_path / "none", [1, 2])
    with pytest.raises(ConfigError, match="no checkpoint was saved with a best_metric"):
        read_variables(tmp_path / "none", which="best")
    save_steps(tmp_path / "nan", [1], metric={1: math.nan}, best_metric="top1")
    with pytest.raises(ConfigError, match="no checkpoint has a value of top1"):
        read_variables(tmp_path / "nan", which="best")


def test_a_damaged_best_is_refused_and_nothing_read_instead(tmp_path):
    save_steps(tmp_path, [1, 2, 3], metric={1: 0.1, 2: 0.9, 3: 0.5}, best_metric="top1")
    _flip_one_value(tmp_path / "2")
    with pytest.raises(DamagedCheckpointError, match="values are not those that were saved"):
        read_variables(tmp_path, which="best")
    # Which is best cannot be known without every step's metrics.
    (tmp_path / "1" / "metadata" / "data.json").unlink()
    with pytest.raises(DamagedCheckpointError, match="is missing"):
        select_step(tmp_path, which="best")
    assert read_variables(tmp_path)[1]["checkpoint"]["step"] == 3
