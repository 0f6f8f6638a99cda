"""What a user can get wrong is one clear error before training, naming what would work."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs

from deit_jax.errors import ConfigError
from deit_jax.storage import lock, process
from deit_jax.train import experiment, loop

DIGITS = ("data.source=digits", "train.batch_size=16")


def refused(spec: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        experiment.build(tiny_runs.load(spec, *overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    "spec, overrides, expected",
    [
        ("deit.py:ti", ["model.name=deit_x"], ["unknown model 'deit_x'", "deit_base_patch16_224"]),
        (
            "deit.py:ti",
            ["data.data_dir=/nowhere"],
            ["/nowhere", "tfds build imagenet2012", "ILSVRC2012_img_train.tar"],
        ),
        ("deit.py:ti", ["data.source=tdfs"], ["unknown source 'tdfs'", "tfds"]),
        ("deit.py:ti", [*DIGITS, "model.dtype=float33"], ["'float33'", "bfloat16"]),
        ("deit.py:ti", [*DIGITS, "model.attention=flash"], ["'flash'", "cudnn"]),
        (
            "deit.py:ti",
            [*DIGITS, "model.attention=cudnn"],
            ["attention='cudnn' needs a GPU", "auto"],
        ),
        ("deit.py:ti", [*DIGITS, "model.patch_size=0"], ["patch_size must be at least 1, not 0"]),
        (
            "deit.py:ti",
            [*DIGITS, "model.drop_path_rate=1.5"],
            ["drop_path_rate must be at least 0 and below 1"],
        ),
        (
            "teachers.py:regnety_160",
            [*DIGITS, "model.group_sizes=112,112,112,0"],
            ["group_sizes must be at least 1, not (112, 112, 112, 0)"],
        ),
        (
            "deit.py:ti",
            [*DIGITS, "step.ema_decay=1.0"],
            ["config.step.ema_decay must be at least 0 (no EMA) and below 1, not 1.0"],
        ),
        ("deit.py:ti", [*DIGITS, "seed=-1"], ["config.seed must be 0 to 4294967295, not -1"]),
        (
            "deit.py:ti",
            [*DIGITS, "train.batch_size=0"],
            ["config.train.batch_size must be at least 1, not 0"],
        ),
        (
            "deit.py:ti",
            [*DIGITS, "train.stop_at_step=-1"],
            ["stop_at_step must be at least 1, not -1"],
        ),
        (
            "deit.py:ti",
            [*DIGITS, "eval.batch_size=0"],
            ["config.eval.batch_size must be at least 1, not 0"],
        ),
        ("deit.py:ti", [*DIGITS, "input.max_corrupt_share=-1"], ["config.input.", "in [0, 1]"]),
        (
            "deit.py:ti",
            [*DIGITS, "step.accum_steps=0"],
            ["config.step.accum_steps must be at least 1, not 0"],
        ),
        (
            "deit.py:ti",
            [*DIGITS, "train.total_epochs=3"],
            ["config.schedule.warmup_epochs must be at most config.train.total_epochs (3), not 5"],
        ),
        (
            "deit.py:ti",
            [*DIGITS, "augment.auto_augment=rand-m99"],
            ["config.augment.auto_augment 'rand-m99': the magnitude m is at most 10 (mmax)"],
        ),
        ("deit.py:ti", [*DIGITS, "augment.auto_augment=rand-n0"], ["'n0': at least one"]),
        (
            "deit.py:ti",
            [*DIGITS, "eval.canvas=223"],
            ["config.eval.canvas must be at least the model's 224 pixels, not 223"],
        ),
        ("deit.py:ti", [*DIGITS, "model.image_size=225"], ["225", "patch_size 16"]),
        (
            "deit.py:ti",
            ["data.source=digits", "train.batch_size=12"],
            ["config.train.batch_size must be divisible by 8 devices, and 12 is not", "8, 16"],
        ),
        (
            "deit.py:ti",
            [*DIGITS, "eval.batch_size=9"],
            ["config.eval.batch_size must be divisible by 8 devices, and 9", "8, 16"],
        ),
        ("deit.py:ti", [*DIGITS, "step.accum_steps=3"], ["3 accumulation steps", "24"]),
        ("deit.py:ti", [*DIGITS, "augment.mix_group=5"], ["mix_group 5", "[2, 4, 8, 16]"]),
        ("deit.py:ti", [*DIGITS, "input.repeats=0"], ["repeats must be at least 1"]),
        ("deit.py:ti", [*DIGITS, "mesh.fsdp=3"], ["fsdp=3", "data=4, fsdp=2"]),
        ("deit.py:ti", [*DIGITS, "init=nofile.pth"], ["config.init", "nofile.pth"]),
        ("finetune.py", ["data.path=/nowhere"], ["/nowhere", "train/<class>/*.jpg"]),
        (
            "deit_distilled.py:ti",
            [*DIGITS],
            [
                "config.teacher.init is not set",
                "regnety_160-a5fe301d.pth",
                "train the same student",
            ],
        ),
        (
            "deit_distilled.py:ti",
            [*DIGITS, "teacher.name=regnety_161"],
            ["unknown model 'regnety_161'", "regnety_160"],
        ),
        (
            "deit_distilled.py:ti",
            [*DIGITS, "teacher.init=gone.pth"],
            ["config.teacher", "gone.pth"],
        ),
        (
            "deit_distilled.py:ti",
            [*DIGITS, "model.name=deit_tiny_patch16_224"],
            ["needs a model with a distillation token", "distill_on=class"],
        ),
    ],
)
def test_mistake_is_named_with_its_cure(spec, overrides, expected):
    message = refused(spec, *overrides)
    for words in expected:
        assert words in message


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["keep_latest=0"], ["keep_latest must be at least 1, not 0"]),
        (
            ["best_metric=eval/class/loss"],
            ["higher_is_better must be False", "the worst checkpoint would be kept"],
        ),
        (
            ["best_metric=eval/mean/top1"],
            [
                "config.checkpoint.best_metric: unknown best_metric 'eval/mean/top1'",
                "eval_ema/class/top1",
            ],
        ),
    ],
)
def test_checkpoint_options_are_checked_before_training(overrides, expected, tmp_path):
    options = [f"checkpoint.{text}" for text in overrides]
    with pytest.raises(ConfigError) as caught:
        loop.train(tiny_runs.tiny("deit.py:ti", *DIGITS, *options), workdir=str(tmp_path))
    for words in expected:
        assert words in str(caught.value)


def test_mistakes_are_reported_together():
    message = refused(
        "deit.py:ti",
        *DIGITS,
        "model.num_heads=5",
        "schedule.min_lr=-1",
        "augment.auto_augment=rand-x9",
        "eval.crop_ratio=2",
        "loss.distillation=soft",
        "loss.tau=-1",
        "mesh.fsdp=3",
    )
    sections = ("model", "augment", "eval", "loss", "mesh", "schedule")
    for section in sections:
        assert f"config.{section}" in message, section


def test_unknown_names_and_options_are_reported_together():
    wrong = ("optim.name=adam", "schedule.kind=linear", "loss.base=mse", "loss.tau=-1")
    message = refused("deit.py:ti", *DIGITS, *wrong)
    for words in ("'adam'; known: adamw", "'linear'; known: ", "'mse'; known: "):
        assert words in message


def test_unknown_data_set_and_split(tfds_dir):
    where = f"data.data_dir={tfds_dir}"
    assert "nearest: imagenet2012" in refused("deit.py:ti", where, "data.name=imagenet2013")
    assert "known: train, validation" in refused("deit.py:ti", where, "data.train_split=trian")
    assert "tfds build mnist" in refused("deit.py:ti", where, "data.name=mnist")


def test_empty_folder(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
    assert "no image" in refused("finetune.py", f"data.path={tmp_path}")


def test_label_outside_the_classes(tmp_path):
    file = tmp_path / "photos.npz"
    images, labels = np.zeros((8, 4, 4, 3), np.uint8), np.arange(8) % 2
    np.savez(
        file,
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels + 5,
        class_names=["cat", "dog"],
    )
    assert "label 5" in refused("finetune.py", "data.source=arrays", f"data.path={file}")


def test_teacher_of_other_classes(tiny_teacher, tmp_path):
    file = tmp_path / "photos.npz"
    images, labels = np.zeros((64, 4, 4, 3), np.uint8), np.arange(64) % 3
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    message = refused(
        "deit_distilled.py:ti",
        "data.source=arrays",
        f"data.path={file}",
        "train.batch_size=16",
        f"teacher.init={tiny_teacher}",
        "teacher.name=regnety_002",
    )
    assert "was trained on 10 classes, but the data has 3" in message


def test_workdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    config = tiny_runs.tiny("quickstart.py:plain", "model.num_heads=3")
    with pytest.raises(ConfigError) as caught:
        tiny_runs.train(config, tmp_path / "file" / "run")
    assert "cannot be written" in str(caught.value) and "num_heads" in str(caught.value)


@pytest.mark.long
def test_workdir_of_another_run(tmp_path, compilation_cache, capsys, monkeypatch):
    tiny_runs.make_cheap(monkeypatch)
    tiny_runs.train(tiny_runs.tiny("quickstart.py:plain", compilation_cache), tmp_path)
    other = tiny_runs.tiny(
        "quickstart.py:plain", compilation_cache, "schedule.base_lr=0.5", "seed=3"
    )
    with pytest.raises(ConfigError) as caught:
        tiny_runs.train(other, tmp_path)
    assert "config.schedule.base_lr: was 0.002, now 0.5" in str(caught.value)
    assert "config.seed: was 0, now 3" in str(caught.value)
    stored = (tmp_path / "config.json").read_text()
    harmless = tiny_runs.tiny("quickstart.py:plain", compilation_cache, "train.log_every_steps=2")
    with monkeypatch.context() as patch:
        other = process.Process("pid 1 elsewhere", "", 1, "")
        patch.setattr(lock, "this_process", lambda: other)
        held = lock.Lock(tmp_path / ".checkpoints.lock")
    with pytest.raises(ConfigError, match="another process .pid 1 elsewhere. is training in"):
        tiny_runs.train(harmless, tmp_path)
    assert (tmp_path / "config.json").read_text() == stored
    held.release()
    deeper = tiny_runs.tiny("quickstart.py:plain", compilation_cache, "model.depth=3")
    with pytest.raises(ConfigError, match="does not fit this config"):
        loop.train(deeper, workdir=str(tmp_path), force_resume=True)
    assert (tmp_path / "config.json").read_text() == stored
    tiny_runs.train(harmless, tmp_path)
    longer = tiny_runs.tiny("quickstart.py:plain", compilation_cache, "train.total_steps=4")
    tiny_runs.train(longer, tmp_path)
    out = capsys.readouterr().out
    assert "config.train.total_steps: was 3, now 4" in out and "step 4/4" in out


def test_loss_that_is_not_finite_stops_the_run(tmp_path, compilation_cache, monkeypatch):
    """The bad update is not made, and the checkpoint before it stays."""
    tiny_runs.make_cheap(monkeypatch)

    make = experiment.step_lib.make_train_step

    def poisoned(*args, **options):
        step = make(*args, **options)

        def train_step(state, teacher, batch):
            bad = jnp.where(state.step == 1, jnp.nan, 1.0)
            head = jax.tree.map(lambda x: x * bad, state.params["head"])
            poisoned = dataclasses.replace(state, params=state.params | {"head": head})
            return step(poisoned, teacher, batch)

        return train_step

    monkeypatch.setattr(experiment.step_lib, "make_train_step", poisoned)
    config = tiny_runs.tiny("quickstart.py:plain")
    with pytest.raises(loop.NonFiniteError) as caught:
        tiny_runs.train(config, tmp_path)
    assert "not finite at step 2" in str(caught.value) and caught.value.exit_code != 0
    assert "checkpoint of step 1 is intact" in str(caught.value)
    assert (tmp_path / "checkpoints" / "1").is_dir()
    assert (tmp_path / "nonfinite-step-2" / "nonfinite.json").is_file()


def test_too_little_device_memory_is_one_line_with_its_cures(tmp_path, monkeypatch):
    tiny_runs.make_cheap(monkeypatch)

    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")

    monkeypatch.setattr(loop.step_lib, "jit", lambda *_: full)
    with pytest.raises(loop.OutOfDeviceMemoryError) as caught:
        tiny_runs.train(tiny_runs.tiny("quickstart.py:plain"), tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 1 and len(message.splitlines()) == 1
    cures = (r"train.batch_size=\d+ \(now 16", r"step.accum_steps=\d+ \(now 1")
    for cure in (*cures, r"model.remat=full \(now none", r"model.dtype=bfloat16 \(now float32"):
        assert re.search(rf"config.{cure}; [\d.]+ GiB\)", message), message


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ["--config=configs/quickstart.py:studnet", "--workdir=w"],
            ["unknown variant 'studnet'", "student"],
        ),
        (
            [
                "--config=configs/deit.py:s",
                "--workdir=w",
                "--config.optim.weight_decy=1",
                "--config.train.batch_size=many",
            ],
            ["did you mean optim.weight_decay", "takes int (now 1024), not 'many'"],
        ),
        (["--config=configs/deit.py:s", "--workdir=w", "--confg.seed=1"], ["'--confg.seed=1'"]),
    ],
)
def test_command_line_mistakes_are_reported_without_a_traceback(arguments, expected, tmp_path):
    root = pathlib.Path(__file__).resolve().parents[2]
    run = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "Traceback" not in run.stderr and run.stdout == ""
    for words in expected:
        assert words in run.stderr
