"""What a state dict does not tell: taken from settings beside the file, else assumed aloud."""

import json

import numpy as np
import pytest
from pretrained.load_test import tiny
from reference.random_weights import random_state
from safetensors.numpy import load_file, save_file

from deit_jax import models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.pretrained import convert
from deit_jax.pretrained.formats import detect, names

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


def test_torchvision_and_large_regnets_are_recognised_and_group_norm_refused():
    for name in ("regnety_008_tv", "regnety_640"):
        table = names.entries(models.create_model(name, num_classes=5), "timm")
        shapes = {e.names[0]: e.part_shape for e in table}
        assert detect.guess_model(shapes, "timm", {}) == (name, {"num_classes": 5})
    shapes = {name: shape for name, shape in shapes.items() if "running" not in name}
    with pytest.raises(ConfigError, match="as in regnety_040_sgn"):
        detect.guess_model(shapes, "timm", {})
