"""`pretrained.describe` answers as `load_checkpoint` does, without reading arrays."""

import jax
import numpy as np
import pytest
from pretrained.convert_test import MODELS, make_source

from deit_jax import augment, models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.pretrained import convert, hub

# What a format cannot express is refused, see convert_test.py.
REFUSED = {("deit3", "hf"), ("deit3", "mmpretrain"), ("regnet", "mmpretrain")}
FORMATS = [(key, to) for key in MODELS for to in convert.WRITERS if (key, to) not in REFUSED]


def without_arrays(loaded):
    fields = {key: value for key, value in vars(loaded).items() if key != "variables"}
    return pretrained.CheckpointInfo(**fields)


@pytest.mark.parametrize(("key", "to"), FORMATS)
def test_each_format_is_described_as_it_is_loaded(tmp_path, key, to):
    ending = {"timm": ".safetensors", "mmpretrain": ".pth"}.get(to, "")
    path = tmp_path / f"there{ending}"
    loaded = convert.convert(make_source(tmp_path, key), path, to=to)
    described = pretrained.describe(path)
    assert described == without_arrays(pretrained.load_checkpoint(path))
    assert described.class_names == ("cat", "dog", "emu") and described.num_classes == 3
    assert described.create_model() == loaded.create_model()


def test_torch_files_and_hints(vectors):
    path, kwargs = vectors / "models_zip.pth", {"num_heads": 2}
    described = pretrained.describe(path, model_kwargs=kwargs)
    assert described == without_arrays(pretrained.load_checkpoint(path, model_kwargs=kwargs))


def test_arrays_are_not_read(tmp_path, monkeypatch):
    source = make_source(tmp_path, "distilled")
    run = tmp_path / "run"
    convert.convert(source, run, to="jax")
    for array_file in (run / "checkpoints" / "0" / "params").rglob("*"):
        if array_file.is_file():
            array_file.unlink()
    assert pretrained.describe(run).num_classes == 3
    with pytest.raises(ConfigError):
        pretrained.load_checkpoint(run)
    with open(source, "r+b") as file:
        file.seek(-8, 2)
        file.write(np.float64(1.0).tobytes())
    assert pretrained.describe(source).num_classes == 3
    with pytest.raises(ConfigError, match="digest"):
        pretrained.load_checkpoint(source)


def test_mistakes_are_refused_as_when_loading(tmp_path):
    source, run = make_source(tmp_path, "plain"), tmp_path / "run"
    convert.convert(source, run, to="jax")
    for path, options, error, text in (
        (tmp_path / "nothing", {}, FileNotFoundError, "not a published checkpoint"),
        (tmp_path, {}, FileNotFoundError, "no checkpoint in"),
        (source, {"ema": True}, ConfigError, "no EMA"),
        (run, {"ema": True}, ConfigError, "no EMA"),
        (run, {"model": "regnety_002"}, ConfigError, "not a regnety_002"),
        (source, {"which": "best"}, ConfigError, "not a run"),
        (run, {"which": "best"}, ConfigError, "no checkpoint was saved with a best_metric"),
        (run, {"which": "7"}, ConfigError, "has no step 7; steps: 0"),
        (run, {"which": "first"}, ConfigError, "latest, best or a step, not 'first'"),
        (run / "checkpoints" / "0", {"which": "best"}, ConfigError, "is one step"),
    ):
        for read in (pretrained.describe, pretrained.load_checkpoint):
            with pytest.raises(error, match=text):
                read(path, **options)


def test_split_weights_of_hugging_face_are_named(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    for read in (pretrained.describe, pretrained.load_checkpoint):
        with pytest.raises(ConfigError, match="split over several files"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["regnety_160", "deit3_small_patch16_384.fb_in22k_ft_in1k"])
def test_published_names_are_described_without_a_download(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DEIT_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("downloads"))
    described = pretrained.describe(name)
    assert described.create_model() == models.create_model(hub.find(name)[1].model)
    assert described.num_classes == 1000 and described.mean == augment.IMAGENET_MEAN
    assert described.image["crop_ratio"] == hub.find(name)[1].crop_ratio
    with pytest.raises(ConfigError, match="not a run"):
        pretrained.describe(name, which="3")
    assert jax.tree.leaves(list(tmp_path.iterdir())) == []
