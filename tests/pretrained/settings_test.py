"""What a state dict does not tell: taken from settings beside the file, else assumed aloud."""

import json

import numpy as np
import pytest
import tiny_runs
from PIL import Image
from pretrained.load_test import tiny
from reference.random_weights import random_state
from safetensors.numpy import load_file, save_file

from deit_jax import cli, models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.pretrained import convert
from deit_jax.pretrained.formats import detect, names
from deit_jax.train import experiment

CFG = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.25], "crop_pct": 0.9}


def foreign(folder, model, naming="timm"):
    """A file as another library writes it, without notes."""
    folder.mkdir()
    table = names.entries(model, naming)
    state = random_state({name: e.part_shape for e in table for name in e.names})
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def small():
    return models.create_model(
        "deit_tiny_patch16_224", depth=12, num_classes=3, image_size=16, num_heads=6
    )


def test_what_is_assumed_is_said(tmp_path, small):
    folder = foreign(tmp_path / "a", small)
    for path in (folder, folder / "model.safetensors"):
        info = pretrained.describe(path)
        assert info.create_model().num_heads == 3
        assert "num_heads 3" in info.assumed and "ImageNet's mean and std" in info.assumed
    info = pretrained.describe(folder, model_kwargs={"num_heads": 6})
    assert info.create_model().num_heads == 6
    assert "num_heads" not in info.assumed and "mean and std" in info.assumed
    loaded = pretrained.load_checkpoint(folder)
    assert loaded.assumed in str(pretrained.adapt(loaded, model=loaded.create_model()).report)


def test_heads_of_the_model_to_start_hold_where_no_file_tells(tmp_path):
    """`--config.model.num_heads` reaches the reader; settings beside the file contradict it."""
    sizes = {"num_heads": 6, "depth": 1, "image_size": 16, "embed_dim": 192, "patch_size": 16}
    small = models.create_model("deit_tiny_patch16_224", num_classes=3, **sizes)
    folder = foreign(tmp_path / "a", small)
    options = [f"model.{key}={value}" for key, value in sizes.items()]
    options += [f"init={folder}", "init_drop_head=True"]
    start = experiment.build(tiny_runs.tiny("quickstart.py:plain", *options)).start
    assert "assumed: num_heads 6 (as the model to start has" in str(start.report)
    image = {"mean": [0.485, 0.456, 0.406], "std": [0.5, 0.5, 0.25]}
    (folder / "config.json").write_text(
        json.dumps({"architecture": "deit_small_patch16_224"} | CFG)
    )
    report = pretrained.adapt(read(folder, small), model=small, image=image).report
    assert report.notes == (
        "trained on images with mean (0.5, 0.5, 0.5); here it is (0.485, 0.456, 0.406)",
    )
    (folder / "config.json").write_text(json.dumps({"architecture": "deit_tiny_patch16_224"}))
    with pytest.raises(ConfigError, match=r"config.init: .*num_heads is 3, the model has 6$"):
        experiment.build(tiny_runs.tiny("quickstart.py:plain", *options))


def test_heads_of_a_size_that_has_no_name_are_those_of_the_model_to_start(tmp_path):
    folder = foreign(tmp_path / "a", tiny())
    assert read(folder, tiny()).create_model() == tiny()
    with pytest.raises(ConfigError, match="name a model, and its num_heads"):
        pretrained.load_checkpoint(folder)


def read(folder, model):
    return pretrained.load_checkpoint(folder, like=model)


@pytest.mark.parametrize("command", ["convert", "predict", "evaluate"])
def test_commands_take_the_heads(tmp_path, small, capsys, command):
    folder = foreign(tmp_path / "a", small)
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photo)
    config = f"--config={tiny_runs.ROOT / 'configs/quickstart.py'}:plain,tiny"
    arguments = {
        "convert": [folder, tmp_path / "out"],
        "predict": [f"--checkpoint={folder}", photo],
        "evaluate": [f"--checkpoint={folder}", config],
    }
    (folder / "config.json").write_text(json.dumps({"architecture": "deit_small_patch16_224"}))
    arguments = [command, *map(str, arguments[command])]
    assert cli.main([*arguments, '--model-kwargs={"num_heads": 3}']) == 2
    assert capsys.readouterr().err == (
        f"deit-jax {command}: {folder} holds num_heads=6, not num_heads=3\n"
    )
    with pytest.raises(SystemExit, match="2"):
        cli.main([*arguments, "--model-kwargs=[6]"])


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "vit_x", "model_args": {"num_heads": 6}, "pretrained_cfg": CFG},
        {"architecture": "deit_small_patch16_224", "pretrained_cfg": CFG},
        {"architecture": "deit_small_patch16_224"} | CFG,
    ],
)
def test_timm_settings_are_followed(tmp_path, small, settings):
    folder = foreign(tmp_path / "a", small)
    (folder / "config.json").write_text(json.dumps(settings))
    info = pretrained.describe(folder)
    assert info.create_model().num_heads == 6 and info.assumed == ""
    with pytest.raises(ConfigError, match="holds num_heads=6, not num_heads=3"):
        pretrained.load_checkpoint(folder, model_kwargs={"num_heads": 3})
    assert (info.mean, info.std, info.image["crop_ratio"]) == (
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.25),
        0.9,
    )
    (folder / "config.json").write_text(json.dumps(settings | {"model_args": [1]}))
    with pytest.raises(ConfigError, match="not the settings"):
        pretrained.describe(folder)


def test_hugging_face_statistics_are_followed(tmp_path):
    source = pretrained.describe(foreign(tmp_path / "a", tiny()), model_kwargs={"num_heads": 2})
    loaded = pretrained.load_checkpoint(tmp_path / "a", model_kwargs={"num_heads": 2})
    assert source.mean == loaded.mean
    convert.save_hf(loaded, tmp_path / "hf")
    weights = tmp_path / "hf" / "model.safetensors"
    save_file(load_file(weights), weights)
    path = tmp_path / "hf" / "preprocessor_config.json"
    processor = json.loads(path.read_text())
    path.write_text(json.dumps(processor | {"image_mean": [0.5, 0.4, 0.3]}))
    info = pretrained.describe(tmp_path / "hf")
    np.testing.assert_allclose(info.mean, (0.5, 0.4, 0.3))
    assert info.assumed == ""
    path.write_text(json.dumps(processor | {"image_std": [0, 0, 0]}))
    with pytest.raises(ConfigError, match="std must be 3 numbers"):
        pretrained.describe(tmp_path / "hf")


def test_our_own_files_and_published_ones_assume_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("DEIT_JAX_CACHE", str(tmp_path))
    assert pretrained.describe("deit_tiny_patch16_224").assumed == ""
    loaded = pretrained.load_checkpoint(
        foreign(tmp_path / "a", tiny()), model_kwargs={"num_heads": 2}
    )
    convert.save_timm(loaded, tmp_path / "a.safetensors")
    assert pretrained.describe(tmp_path / "a.safetensors").assumed == ""


def test_relatives_of_regnety_are_recognised():
    for name in ("regnety_008_tv", "regnety_040", "regnety_640", "regnety_040_sgn"):
        table = names.entries(models.create_model(name, num_classes=5), "timm")
        shapes = {e.names[0]: e.part_shape for e in table}
        assert detect.guess_model(shapes, "timm", {}) == (name, {"num_classes": 5})
    shapes.pop("s4.b1.conv2.conv.weight")
    with pytest.raises(ConfigError, match="missing the tensors of block 0"):
        detect.guess_model(shapes, "timm", {})


def test_group_norm_of_other_widths_is_not_guessed():
    design = {"widths": (16,) * 4, "depths": (1,) * 4, "group_sizes": (8,) * 4}
    model = models.create_model("regnety_040_sgn", num_classes=5, **design)
    shapes = {e.names[0]: e.part_shape for e in names.entries(model, "timm")}
    with pytest.raises(ConfigError, match="norm_group and activation"):
        detect.guess_model(shapes, "timm", {})
    name, found = detect.guess_model(shapes, "timm", {"norm_group": 8, "activation": "relu"})
    assert models.create_model(name, **found).norm_group == 8
