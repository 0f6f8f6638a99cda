"""Goodput: the share of wall time, over all starts, that went into steps which the run has."""

import json

import pytest

from deit_jax.cli import main
from deit_jax.tracking import starts


def write(workdir, begun, lines):
    workdir.mkdir()
    for step, time in begun:
        starts.record(workdir, step, time, {"device": "cpu"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "metrics.jsonl").write_text(text)
    return workdir


def line(step, time, step_time=None, **more):
    speed = {} if step_time is None else {"train/step_time": step_time}
    return {"step": step, "time": time} | speed | more


def test_a_run_killed_three_times_equals_the_computation_by_hand(tmp_path):
    # Launched at 1000 s; killed after steps 40, 40 and 70; finished with step 100 at 1500 s.
    # The log has a line every 20 steps, less those of steps that were done again.
    lines = [
        line(20, 1060, 2.0),
        line(40, 1100, 2.0),
        # Resumed at 1150 after the checkpoint of step 50; its line covers 51 to 60.
        line(60, 1250, 3.0),
        line(80, 1400, 1.0),
        line(100, 1480, 4.0),
        line(100, 1500, **{"eval/class/top1": 0.5}),
    ]
    begun = [(0, 1000), (30, 1110), (50, 1150), (60, 1300)]
    found = starts.goodput(write(tmp_path / "run", begun, lines))
    assert found == starts.Goodput(20 * 2 + 20 * 2 + 20 * 3 + 20 * 1 + 20 * 4, 500, 4)
    assert str(found) == "48.0% of 8m20s in training steps (4 starts, 4m20s lost)"


def test_a_line_of_compilation_alone_is_worth_its_steps(tmp_path):
    lines = [line(1, 1030), line(2, 1032, 2.0), line(3, 1034, 2.0)]
    found = starts.goodput(write(tmp_path / "run", [(0, 1000)], lines))
    assert found == starts.Goodput(6.0, 34, 1)
    assert str(found) == "17.6% of 34s in training steps (1 start, 28s lost)"


def test_what_an_older_version_recorded_has_none(tmp_path, capsys):
    run = write(tmp_path / "run", [], [{"step": 9, "train/step_time": 1.0, "eval/class/top1": 1.0}])
    assert starts.goodput(run) is None
    assert starts.goodput(tmp_path) is None
    assert main(["compare", f"a={run}"]) == 0
    assert "goodput of a: not recorded" in capsys.readouterr().out


@pytest.mark.parametrize("when", [999, 1000])
def test_a_clock_that_went_back_gives_no_share(tmp_path, when):
    assert starts.goodput(write(tmp_path / "run", [(0, 1000)], [line(1, when, 1.0)])) is None
