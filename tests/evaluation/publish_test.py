"""`deit-jax publish`: folders that this library reads back, and cards that invent nothing."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from pretrained.convert_test import MODELS, make_source, run

from deit_jax import pretrained
from deit_jax.errors import ConfigError
from deit_jax.evaluation import card, publish

# What a run stores with a checkpoint, in part.
RUN = {
    "checkpoint": {
        "step": 1234,
        "metrics": {
            "eval/count": 355.0,
            "eval/class/top1": 0.97184,
            "eval/class/top5": 0.99437,
            "eval/dist/top1": 0.96338,
            "eval_ema/count": 355.0,
            "eval_ema/class/top1": 0.97465,
            "eval_ema/class/top5": 0.98873,
        },
    },
    "data": {"train_images": 1442, "eval_images": 355, "steps_per_epoch": 50},
    "provenance": {"deit_jax": "0.1.0", "python": "3.11.7", "packages": {"jax": "0.10.2"}},
    "config": {
        "data": {"source": "folder", "path": "/home/me/secret/pets", "val_share": 0.2},
        "train": {"batch_size": 32},
        "init": "/home/me/weights.pth",
        "loss": {"distillation": "hard"},
        "teacher": {"init": "runs/of/mine/teacher"},
        "optim": {"name": "adamw", "weight_decay": 0.05},
        "log": {"trackers": ["wandb"]},
    },
}


def loaded_from(tmp_path, key="distilled", **metadata):
    loaded = pretrained.load_checkpoint(make_source(tmp_path, key))
    return dataclasses.replace(loaded, metadata=metadata)


@pytest.mark.parametrize(("key", "to"), [*((k, "timm") for k in MODELS), ("distilled", "hf")])
def test_a_folder_is_read_back(tmp_path, capsys, key, to):
    if key == "regnet":
        # timm has no arguments for the widths.
        key, MODELS["published"] = "published", ("regnety_002", {"image_size": 32})
    source, folder = make_source(tmp_path, key), tmp_path / "mine"
    code, out, _ = run(capsys, "publish", "--checkpoint", source, folder, f"--to={to}")
    assert code == 0 and f"wrote {folder} for {to}" in out
    MODELS.pop("published", None)
    first, again = pretrained.load_checkpoint(source), pretrained.load_checkpoint(folder)
    assert again.create_model() == first.create_model()
    assert again.class_names == first.class_names
    assert json.dumps(again.image) == json.dumps(first.image)
    jax.tree.map(np.testing.assert_array_equal, again.variables, first.variables)


def test_the_settings_alone_tell_the_model(tmp_path):
    """As for a reader without our notes inside the weights."""
    loaded = loaded_from(tmp_path)
    config = publish.timm_config(loaded)
    assert config["architecture"] == "deit_tiny_distilled_patch16_224"
    small = {"img_size": (16, 16), "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    assert config["model_args"] == small
    assert config["label_names"] == ["cat", "dog", "emu"]
    preparation = {"crop_pct": 0.8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.25]}
    assert preparation.items() <= config["pretrained_cfg"].items()
    plain = dataclasses.replace(
        loaded,
        model="deit_tiny_patch16_224",
        model_kwargs=loaded.model_kwargs | {"distilled": True},
    )
    assert publish.timm_config(plain) == config


def numbers(text):
    return {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}


@pytest.mark.parametrize("weights", ["raw", "EMA"])
def test_every_number_of_a_card_is_the_runs(tmp_path, weights):
    loaded = loaded_from(tmp_path, **RUN)
    text = card.write_card(loaded, "mine", "timm", weights)
    metrics = RUN["checkpoint"]["metrics"]
    prefix = "eval/" if weights == "raw" else "eval_ema/"
    shares = {k: f"{100 * v:.2f}" for k, v in metrics.items() if k.startswith(prefix) and v < 1}
    size = loaded.create_model().count()
    told = json.dumps([RUN, loaded.image, loaded.model, size, shares, "24.68 epochs, 3 classes"])
    assert numbers(text) <= numbers(told) | {float(1234 / 50)}
    for share in shares.values():
        assert share in text
    other = "EMA" if weights == "raw" else "raw"
    assert f"Accuracy ({weights} weights)" in text and other not in text
    for fact in ("355 images", "| epochs | 24.68 |", "| data | pets (folder) |", "cat, dog, emu"):
        assert fact in text
    assert "| teacher | teacher (hard distillation) |" in text and "weights.pth" in text
    assert "/home" not in text and "secret" not in text and "wandb" not in text


def test_what_is_unknown_is_left_out(tmp_path):
    text = card.write_card(loaded_from(tmp_path), "mine", "hf", "raw")
    assert "## Model" in text and "## Use" in text
    assert not [word for word in ("Accuracy", "Training", "Recipe", "None") if word in text]
    not_evaluated = RUN | {"checkpoint": {"step": 7, "metrics": {}}}
    text = card.write_card(loaded_from(tmp_path, **not_evaluated), "mine", "hf", "raw")
    assert "Accuracy" not in text and "| steps | 7 |" in text
    older = {key: value for key, value in RUN.items() if key != "data"}
    assert "epochs" not in card.write_card(loaded_from(tmp_path, **older), "mine", "hf", "raw")


def test_a_run_stores_what_its_card_tells(tiny_teacher):
    metadata = pretrained.describe(tiny_teacher).metadata
    facts = card.training_facts(metadata)
    assert facts["data"] == "(digits)" and facts["images (train)"] == "1,442"
    counts, step = metadata["data"], metadata["checkpoint"]["step"]
    assert facts["epochs"] == f"{step / counts['steps_per_epoch']:.4g}"
    top1 = metadata["checkpoint"]["metrics"]["eval/class/top1"]
    assert f"| class head | {100 * top1:.2f} |" in card.accuracy(metadata, "raw")


def test_what_no_library_has_is_one_line(tmp_path, capsys):
    source = make_source(tmp_path, "regnet")
    code, _, error = run(capsys, "publish", "--checkpoint", source, tmp_path / "mine", "--to=timm")
    assert code == 2 and "timm's regnety_002 has another widths, depths" in error
    assert error.count("\n") == 1 and not (tmp_path / "mine").exists()
    code, _, error = run(capsys, "publish", "--checkpoint", source, tmp_path / "mine", "--to=keras")
    assert (code, error) == (2, "deit-jax publish: unknown format 'keras'; known: hf, timm\n")
    (tmp_path / "mine").mkdir()
    code, _, error = run(capsys, "publish", "--checkpoint", source, tmp_path / "mine")
    assert code == 2 and "mine exists" in error
    with pytest.raises(ConfigError, match="epsilon of 1e-06, this one 1e-12"):
        loaded = loaded_from(tmp_path, "plain")
        kwargs = loaded.model_kwargs | {"epsilon": 1e-12}
        publish.timm_config(dataclasses.replace(loaded, model_kwargs=kwargs))


def test_into_a_bucket(tmp_path, capsys, bucket, gcs):
    source = make_source(tmp_path, "plain")
    assert run(capsys, "publish", "--checkpoint", source, f"gs://{bucket}/mine")[0] == 0
    files = ("README.md", "config.json", "model.safetensors", "preprocessor_config.json")
    assert set(gcs.buckets[bucket]) == {f"mine/{name}" for name in files}
    again = pretrained.load_checkpoint(f"gs://{bucket}/mine")
    first = pretrained.load_checkpoint(source)
    jax.tree.map(np.testing.assert_array_equal, again.variables, first.variables)
