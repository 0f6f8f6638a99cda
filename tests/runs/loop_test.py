"""What one start of a run reports: profile, time to the first step, averages, agreement."""

import fnmatch
import json
import pathlib

import jax
import numpy as np
import pytest
import tiny_runs

from deit_jax import data
from deit_jax.checkpoint import SaveFailedError, layout, manager
from deit_jax.config import flatten, to_json
from deit_jax.errors import ConfigError
from deit_jax.evaluation import agreement
from deit_jax.tracking import profiler as profiler_lib
from deit_jax.tracking import startup
from deit_jax.tracking.averages import MetricAverages
from deit_jax.tracking.jsonl import read_jsonl
from deit_jax.train import loop, workdir


@pytest.mark.parametrize("text, span", [("", None), ("3:3", (3, 3)), (" 2 : 10 ", (2, 10))])
def test_spans(text, span):
    assert profiler_lib.parse_span(text, total_steps=10) == span


@pytest.mark.parametrize(
    "text, message",
    [
        ("5", "'5' is not first:last"),
        ("a:b", "is not first:last"),
        ("2:", "is not first:last"),
        ("-1:3", "is not first:last"),
        ("0:3", "steps 1 to 10"),
        ("4:3", "first cannot be after"),
        ("4:11", "steps 1 to 10"),
    ],
)
def test_spans_that_no_run_has(text, message):
    with pytest.raises(ConfigError, match=message):
        profiler_lib.parse_span(text, total_steps=10)


def test_a_span_that_is_over_is_reported_and_left_out():
    lines = []
    profiler = profiler_lib.Profiler(
        profiler_lib.Span(3, 5),
        folder=pathlib.Path("unused"),
        start_step=4,
        print_line=lines.append,
    )
    assert "resumes after step 4" in lines[0] and "3:5" in lines[0]
    assert not any(profiler.begins(step) or profiler.ends(step) for step in range(1, 9))
    profiler.stop()


def test_averages_are_of_the_finite_steps():
    averages = MetricAverages()
    assert not averages
    averages.add({"loss": 1.0})
    averages.skip()
    averages.add({"loss": 2.0})
    assert averages.take() == {"loss": 1.5, "averaged_steps": 2}
    assert not averages
    averages.skip()
    assert averages and averages.take() == {"averaged_steps": 0}


def test_shrunk_and_corrupt_images_are_in_the_log_once_there_are_any():
    assert loop._health_notes(data.Health(images=10)) == []
    health = data.Health(images=1000, shrunk=123, corrupt_names={5: "a.jpg", 7: "b.jpg"})
    shrunk, corrupt = loop._health_notes(health)
    assert (shrunk, corrupt) == (
        "12.3% of images shrunk to the canvas",
        "2 corrupt images replaced",
    )


def test_cold_and_warm_starts():
    times = {
        "seconds": 21.26,
        "trace_seconds": 3.0,
        "compile_seconds": 12.0,
        "run_seconds": 0.5,
        "programs": 4.0,
    }
    assert "finished 21.3 s after launch (trace" in startup.describe(
        times | {"programs_cached": 4.0}
    )
    assert "[warm, 4 of 4" in startup.describe(times | {"programs_cached": 4.0})
    assert "[cold, 3 of 4" in startup.describe(times | {"programs_cached": 3.0})
    none = times | {"programs": 0.0, "programs_cached": 0.0}
    assert "[no cache]" in startup.describe(none)


def test_the_clock_tells_tracing_compiling_and_running_apart():
    def step(x):
        for _ in range(50):
            x = x @ x
        return x

    with startup.StartClock() as clock:
        times = clock.first_step(lambda: jax.jit(step)(jax.numpy.eye(100)))
    assert times["compile_seconds"] > 0 and times["trace_seconds"] > 0
    parts = times["trace_seconds"] + times["compile_seconds"] + times["run_seconds"]
    assert parts <= times["seconds"] * 1.01
    before = clock.compile_seconds
    jax.jit(lambda x: x * 3)(1.0)
    assert clock.compile_seconds == before, "it no longer listens"


def test_the_agreement_matrix():
    choices = {
        "class": [1, 2, 3, 4],
        "dist": [1, 2, 3, 5],
        "mean": [1, 2, 3, 4],
        "softmax_sum": [1, 2, 3, 4],
        "teacher": [1, 2, 0, 5],
        "label": [1, 1, 1, 1],
    }
    shares = agreement.differences({name: np.array(row) for name, row in choices.items()})
    assert shares["differ/class/dist"] == 0.25 and shares["differ/teacher/label"] == 0.75
    head, *rows = agreement.table(shares | {"count": 4}, title="of 4").splitlines()
    assert head == "  ".join(["of 4".ljust(17), *agreement.TITLES.values()])
    table = {row[:17].strip(): row[17:].split() for row in rows}
    assert list(table) == ["label", "teacher", "class head", "distillation head", "mean of logits"]
    assert table["teacher"] == ["75.00", "0.00", "50.00", "25.00", "50.00"]
    assert [row[4] for row in table.values()] == table["mean of logits"]
    alone = agreement.table({"differ/class/label": 0.5}).splitlines()
    assert len(alone) == 3, "only what is in the results has a row"


def test_what_does_not_change_the_past_may_change_between_starts(tmp_path):
    """After a run has stopped at a bad step one wants to skip it, or to look at a profile."""
    folder, _ = workdir.open_workdir(tmp_path, tiny_runs.load("quickstart.py:plain"))
    workdir.store_config(folder, tiny_runs.load("quickstart.py:plain"))
    other = ("nonfinite.action=skip", "profile=1:2", "compilation_cache=elsewhere")
    assert workdir.open_workdir(tmp_path, tiny_runs.load("quickstart.py:plain", *other)) == (
        folder,
        [],
    )


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "{", None])
def test_a_config_that_cannot_be_read_is_one_line(content, tmp_path):
    file = tmp_path / "config.json"
    file.mkdir() if content is None else file.write_text(content)
    with pytest.raises(ConfigError, match="restore the file or choose another") as caught:
        workdir.open_workdir(tmp_path, tiny_runs.load("quickstart.py:plain"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_checkpoint_of_another_run_is_told_by_its_config():
    config = tiny_runs.load("quickstart.py:plain")
    stored = json.loads(to_json(tiny_runs.load("quickstart.py:plain", "train.stop_at_step=3")))
    del stored["model"]["epsilon"]
    assert workdir.foreign({"config": stored}, config) == "", "an option of another version"
    reason = workdir.foreign({"config": stored | {"seed": 7}}, config)
    assert reason == "config.seed was 7, now 0; --force_resume takes it"


def test_every_pattern_of_harmless_options_matches_one():
    specs = ("quickstart.py:plain", "deit.py:ti", "finetune.py")
    configs = [tiny_runs.load(spec) for spec in specs]
    configs.append(tiny_runs.load("quickstart.py:student", "teacher.record=labels"))
    keys = {key for config in configs for key in flatten(config)}
    for pattern in workdir.HARMLESS + workdir.LENGTH:
        assert fnmatch.filter(keys, pattern), pattern


def traced_steps(folder):
    """Numbers of the steps in a profile, as the loop annotates them."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
    # Not jax.profiler.ProfileData, which ends the process on some names in jax 0.12.
    space = xplane_pb2.XSpace.FromString(file.read_bytes())
    numbers = []
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            if plane.event_metadata[event.metadata_id].name == "train":
                stats = {plane.stat_metadata[s.metadata_id].name: s for s in event.stats}
                numbers.append(stats["step_num"].int64_value)
    return sorted(numbers)


@pytest.fixture
def cheap_runs(monkeypatch):
    tiny_runs.make_cheap(monkeypatch)


def test_a_run_reports_its_start_and_profiles_the_chosen_steps(cheap_runs, tmp_path, capsys):
    options = [
        "train.total_steps=6",
        "train.log_every_steps=4",
        "train.eval_every_steps=0",
        "train.checkpoint_every_steps=0",
        "log.trackers=",
        "model.depth=1",
        # A pixel less than the digits have.
        "input.canvas=7",
        f"compilation_cache={tmp_path / 'cache'}",
    ]
    load = lambda *more: tiny_runs.tiny("quickstart.py:plain", *options, *more)
    tiny_runs.train(load("train.stop_at_step=1"), tmp_path / "run")
    assert list((tmp_path / "cache").iterdir()), "whatever runs of this process used before"
    cold = capsys.readouterr().out
    assert "100.0% of images shrunk to the canvas" in cold
    assert "first step finished" in cold and "[cold, " in cold

    tiny_runs.train(load("profile=3:4"), tmp_path / "run")
    warm = capsys.readouterr().out
    assert "[warm, " in warm
    assert f"profile of steps 3:4 in {tmp_path / 'run' / 'profile'}" in warm
    assert traced_steps(tmp_path / "run" / "profile") == [3, 4]
    lines = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 4, 6]
    first, goes_on, *rest = (line for line in lines if "train/loss" in line)
    assert first["start/programs_cached"] < first["start/programs"]
    assert goes_on["start/programs_cached"] == goes_on["start/programs"] > 0
    assert 0 < goes_on["start/compile_seconds"] < goes_on["start/seconds"]
    assert goes_on["train/averaged_steps"] == 3, "steps 2 to 4: what this start did"
    assert not any(key.startswith("start/") for line in rest for key in line)
    assert goes_on["train/shrunk_share"] == 1 and goes_on["train/corrupt_images"] == 0
    assert not {"train/mfu", "train/memory_gib"} & set(goes_on), "not known on a CPU"


def test_a_folder_that_becomes_read_only_ends_the_run_with_an_intact_checkpoint(
    cheap_runs, tmp_path, compilation_cache, monkeypatch, caplog
):
    """Training continues until too many saves have failed; the last checkpoint stays intact."""
    config = tiny_runs.tiny(
        "quickstart.py:plain",
        compilation_cache,
        "train.total_steps=5",
        "model.depth=1",
        "train.eval_every_steps=0",
        "log.trackers=",
        "checkpoint.max_failures=3",
    )
    begin = manager.begin_save

    def refusing(folder, *rest):
        if int(folder.name) > 1:
            raise OSError(30, "Read-only file system", str(folder))
        return begin(folder, *rest)

    monkeypatch.setattr(manager, "begin_save", refusing)
    with pytest.raises(SaveFailedError, match="3 checkpoints in a row.*Read-only") as caught:
        tiny_runs.train(config, tmp_path)
    assert caught.value.exit_code == 1
    lines = [r.getMessage() for r in caplog.records if "checkpoint not saved" in r.getMessage()]
    assert len(lines) == 3 and "the last saved is of step 1" in lines[0]
    steps = [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps[:4] == [1, 2, 3, 4]
    assert layout.steps_in(tmp_path / "checkpoints") == [1]
