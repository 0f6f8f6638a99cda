"""Every shipped recipe and variant, shrunk, runs and resumes; the quickstart on eight devices."""

import json
import re

import jax
import numpy as np
import pytest
import tiny_runs

from deit_jax import config as config_lib
from deit_jax.checkpoint import read_variables
from deit_jax.errors import ConfigError
from deit_jax.tracking.jsonl import read_jsonl
from deit_jax.train import experiment, loop


def shipped() -> list[str]:
    """`file.py:variant` of every recipe, found by looking, so that none can be forgotten."""
    found = []
    for file in sorted((tiny_runs.ROOT / "configs").glob("*.py")):
        if file.name == "common.py":
            continue
        names = {}
        exec(compile(file.read_text(), str(file), "exec"), names)
        found += [f"{file.name}:{variant}" for variant in names.get("VARIANTS", [""])]
    return found


def options_of(spec, tiny_teacher) -> list[str]:
    config = tiny_runs.load(spec)
    if config.loss.distillation == "none":
        return [*tiny_runs.DIGITS]
    teacher = [f"teacher.init={tiny_teacher}", "teacher.name=regnety_002"]
    if config.teacher.get("input_size"):
        teacher.append("teacher.input_size=48")
    return [*tiny_runs.DIGITS, *teacher]


def kind_of(config) -> tuple:
    """What a run's state and step depend on."""
    family = config.model.name.split("_")[0]
    loss = (config.loss.base, config.loss.distillation, config.loss.get("distill_on"))
    return (family, config.optim.name, config.step.train_mode, config.step.ema_decay > 0, *loss)


# What changes no other part of a shrunk run; stochastic depth is tested with the models.
NAMES = {
    "model.name",
    "model.drop_path_rate",
    "teacher.name",
    "teacher.input_size",
    "mix_group_limit",
    "init",
    "init_drop_head",
    "checkpoint.best_metric",
}


# The rest is marked `long`.
QUICK = {"deit.py:ti", "deit_distilled.py:ti"}


def structure_of(section) -> str:
    """A section without names, and of rates and shares only whether each is above 0."""
    flat = config_lib.flatten(section)
    flat |= {key: value > 0 for key, value in flat.items() if isinstance(value, float)}
    return json.dumps(flat | dict.fromkeys(NAMES & flat.keys()), default=str, sort_keys=True)


def shrunk() -> list:
    """Recipes that share a run, overrides, and whether the run is the first of its kind.

    Recipes that differ only in names, rates and shares when shrunk share a run: the first is
    trained, the others are built. Each augmentation, and each policy in it, is run with the
    first recipe that has it and left out of the others: compiling it is most of the time.
    """
    found, runs_of, seen, kinds = [], {}, set(), set()
    for spec in shipped():
        sections = tiny_runs.tiny(spec, *tiny_runs.DIGITS).to_dict()
        augmentation = sections.pop("augment")
        policy, whole = augmentation["auto_augment"], structure_of(augmentation)
        family = sections["model"]["name"].split("_")[0]
        rest = family + structure_of(sections)
        if rest in runs_of and whole in seen:
            runs_of[rest].append(spec)
            continue
        off = ("augment.auto_augment=",) if policy in seen else ()
        off = tiny_runs.NO_AUGMENTATION if whole in seen else off
        seen |= {whole, policy}
        kind = kind_of(tiny_runs.load(spec))
        specs = [spec]
        runs_of.setdefault(rest, specs)
        marks = () if spec in QUICK else pytest.mark.long
        found.append(pytest.param(specs, off, kind not in kinds, id=spec, marks=marks))
        kinds.add(kind)
    return found


@pytest.mark.parametrize("specs, augmentation, resumes", shrunk())
def test_every_variant_runs_and_starts_again(
    specs, augmentation, resumes, tmp_path, compilation_cache, tiny_teacher, monkeypatch, capsys
):
    """Two steps, evaluation, and a second start, which restores the checkpoint.

    The first recipe of each kind is stopped after one step as well, and resumed.
    """
    spec, *others = specs
    tiny_runs.on_one_device(monkeypatch)
    monkeypatch.setattr(loop.pictures, "draw", lambda *_: None)
    options = [
        *options_of(spec, tiny_teacher),
        *augmentation,
        compilation_cache,
        "train.total_steps=2",
        "train.checkpoint_every_steps=0",
        "eval.batch_size=120",
    ]
    config = tiny_runs.tiny(spec, *options)
    if "depth" in config.model:
        options.append("model.depth=1")
    for other in others:
        experiment.build(tiny_runs.tiny(other, *options_of(other, tiny_teacher)))
    if resumes:
        with monkeypatch.context() as patch:
            tiny_runs.make_cheap(patch)
            tiny_runs.train(tiny_runs.tiny(spec, *options, "train.stop_at_step=1"), tmp_path)
    results = tiny_runs.train(tiny_runs.tiny(spec, *options), tmp_path)
    assert tiny_runs.train(tiny_runs.tiny(spec, *options), tmp_path) == {}, (
        "started again: nothing to do"
    )
    assert results["eval/count"] == 355
    assert ("eval_ema/count" in results) == (config.step.ema_decay > 0)
    assert ("eval/dist/top1" in results) == bool(config.model.get("distilled"))
    assert "already at step 2 of 2" in capsys.readouterr().out
    records = [r for r in read_jsonl(tmp_path / "metrics.jsonl") if "train/loss" in r]
    assert [r["step"] for r in records] == [1, 2], "no step twice"
    distils = config.loss.distillation != "none"
    assert all(("train/distillation_loss" in r) == distils for r in records)
    assert all(np.isfinite(r["train/loss"]) for r in records)


def test_every_variant_has_the_tiny_mode():
    """Only size, length and cadence change; data, teacher, loss and optimizer stay."""
    for spec in shipped():
        whole, tiny = (config_lib.flatten(load(spec)) for load in (tiny_runs.load, tiny_runs.tiny))
        changed = {key for key in tiny if tiny[key] != whole.get(key)}
        sections = {key.split(".")[0] for key in changed}
        assert sections <= {"model", "input", "schedule", "train", "eval"}, spec
        assert tiny["train.total_steps"] == 3
        assert tiny["model.image_size"] == 32


def test_an_unknown_variant_is_refused_with_the_known_ones():
    known = re.escape("known: ti, s, b; each also with ,tiny")
    for spec in ("deit.py:xl", "deit.py:ti,tny", "deit.py:ti,tiny,tny", "deit.py:tiny,ti"):
        with pytest.raises(ConfigError, match=known):
            tiny_runs.load(spec)


@pytest.mark.long
@pytest.mark.parametrize("variant", ["teacher", "student"])
def test_quickstart_runs_and_resumes_on_eight_devices(
    variant, tmp_path, compilation_cache, tiny_teacher, capfd
):
    spec = f"quickstart.py:{variant}"
    options = [*options_of(spec, tiny_teacher), compilation_cache]
    first = tiny_runs.train(tiny_runs.tiny(spec, *options, "train.stop_at_step=1"), tmp_path)
    results = tiny_runs.train(tiny_runs.tiny(spec, *options), tmp_path)
    assert first.keys() == results.keys()
    assert results["eval/count"] == 355
    records = list(read_jsonl(tmp_path / "metrics.jsonl"))
    steps = [record["step"] for record in records if "train/loss" in record]
    assert steps == [1, 2, 3], "the second start resumes after step 1, and no step is logged twice"
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(
        config_lib.to_json(tiny_runs.tiny(spec, *options))
    )
    variables, metadata = read_variables(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    assert metadata["class_names"] == [str(digit) for digit in range(10)]
    out, err = capfd.readouterr()
    assert "Total:" in out and "images/s" in out and "ETA" in out
    distilled = tiny_runs.load(spec).loss.distillation != "none"
    assert ("eval_ema: differ, % of images" in out) == distilled
    assert err == "", "nothing but the run's own lines on the terminal"


@pytest.mark.long
def test_going_on_equals_not_stopping(tmp_path, compilation_cache, monkeypatch):
    """Bit for bit, on the same devices."""
    tiny_runs.make_cheap(monkeypatch)

    def options(**train):
        return tiny_runs.tiny(
            "quickstart.py:plain",
            compilation_cache,
            "train.total_steps=4",
            "train.eval_every_steps=0",
            *(f"train.{k}={v}" for k, v in train.items()),
        )

    tiny_runs.train(options(), tmp_path / "whole")
    tiny_runs.train(options(stop_at_step=3), tmp_path / "parts")
    tiny_runs.train(options(), tmp_path / "parts")
    whole, _ = read_variables(tmp_path / "whole")
    parts, _ = read_variables(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


def test_finished_run_has_nothing_to_do(tmp_path, compilation_cache, capsys, monkeypatch):
    tiny_runs.make_cheap(monkeypatch)
    config = tiny_runs.tiny("quickstart.py:plain", compilation_cache)
    tiny_runs.train(config, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    tiny_runs.train(config, tmp_path)
    assert "already at step 3 of 3" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["deit.py:ti", "deit_distilled.py:ti"])
def test_imagenet_photos_through_the_shipped_configs(
    recipe, tfds_dir, tmp_path, compilation_cache, monkeypatch
):
    tiny_runs.on_one_device(monkeypatch)
    monkeypatch.setattr(loop.pictures, "draw", lambda *_: None)
    photos = [f"data.data_dir={tfds_dir}", compilation_cache]
    if "distilled" in recipe:
        teacher = tiny_runs.tiny(
            "quickstart.py:teacher",
            *photos,
            "data.source=tfds",
            "data.name=imagenet2012",
            "model.image_size=32",
            "augment.mean=0.485,0.456,0.406",
        )
        with monkeypatch.context() as patch:
            tiny_runs.make_cheap(patch)
            tiny_runs.train(teacher, tmp_path / "teacher")
        photos += [f"teacher.init={tmp_path / 'teacher'}", "teacher.name=regnety_002"]
    config = tiny_runs.tiny(recipe, *photos)
    results = tiny_runs.train(config, tmp_path / "run")
    assert results["eval/count"] == results["eval_ema/count"] == 100
    _, metadata = read_variables(tmp_path / "run", ema=True)
    assert metadata["class_names"][0] == "n01440764" and len(metadata["class_names"]) == 1000


def test_only_recipes_without_a_published_figure_have_a_cosine_per_step():
    photos = {"finetune.py": ("data.source=folder", "data.path=photos")}
    for spec in ("quickstart.py:student", "cifar10.py:token", "cifar10.py:none_short", *photos):
        schedule = tiny_runs.load(spec, *photos.get(spec, ())).schedule
        assert (schedule.kind, schedule.by_epoch) == ("cosine", False), spec
