"""MMPretrain: its names, its published models, checkpoints of mmengine's runs."""

import jax
import numpy as np
import pytest
from reference.random_weights import random_state

from deit_jax import models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.pretrained import hub
from deit_jax.pretrained.formats import detect, names
from deit_jax.pretrained.formats.torch_file import write_torch

# The model of tests/vectors/models_mmpretrain.pth.
SMALL = {"image_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}


def tiny():
    return models.create_model("deit_tiny_patch16_224", num_classes=3, **SMALL)


def assert_equal_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_mmpretrain_has_the_same_tensors_in_every_published_model(vectors):
    stored = np.load(vectors / "models_mmpretrain.npz")
    published = {name: e for name, e in hub.PUBLISHED.items() if "openmmlab" in e.url}
    assert len(published) == 9
    for name in [entry.model for entry in published.values()] + ["deit3_small_patch16_224"]:
        model = models.create_model(name)
        table = names.entries(model, "mmpretrain")
        ours = {(entry.names[0], "x".join(map(str, entry.part_shape))) for entry in table}
        assert ours == {tuple(row.split()) for row in stored[f"shapes/{name}"]}
        shapes = {entry.names[0]: entry.part_shape for entry in table}
        assert detect.naming_of(set(shapes)) == "mmpretrain"
        guessed, arguments = detect.guess_model(shapes, "mmpretrain", {})
        assert models.create_model(guessed, **arguments) == model
    for entry in published.values():
        # Its counter also has what LayerNorm costs.
        macs = models.create_model(entry.model).count()[1] / 1e9
        assert macs < entry.gflops < 1.004 * macs
        assert entry.url.endswith(f"-{entry.sha256}.pth")
    entry = published["deit-base-distilled_224px-pre_3rdparty_in1k-384px"]
    assert entry.url == (
        "https://download.openmmlab.com/mmclassification/v0/deit/"
        "deit-base-distilled_3rdparty_ft-16xb32_in1k-384px_20211216-e48d6000.pth"
    )
    assert published["deit-tiny_4xb256_in1k"].url.endswith(
        "/deit-tiny_pt-4xb256_in1k_20220218-13b382a0.pth"
    )


def test_checkpoint_of_an_mmengine_run_has_raw_weights_ema_and_classes(vectors):
    stored = np.load(vectors / "models_mmpretrain.npz")
    table = names.entries(tiny(), "mmpretrain")
    for ema, prefix in ((False, "raw/"), (True, "ema/")):
        kwargs = {"ema": ema, "model_kwargs": {"num_heads": 2}}
        loaded = pretrained.load_checkpoint(vectors / "models_mmpretrain.pth", **kwargs)
        tensors = {k.removeprefix(prefix): stored[k] for k in stored if k.startswith(prefix)}
        assert_equal_trees(loaded.variables, names.read(table, tensors))
        assert loaded.create_model() == tiny()
        assert (loaded.format, loaded.class_names) == ("mmpretrain", ("cat", "dog", "emu"))


def test_raw_weights_that_mmcv_1_keeps_beside_the_ema_are_left_out(tmp_path):
    table = names.entries(tiny(), "mmpretrain")
    state = random_state({entry.names[0]: entry.part_shape for entry in table})
    beside = {f"ema_{name.replace('.', '_')}": value + 1 for name, value in state.items()}
    meta = {"CLASSES": ["cat", "dog", "emu"], "epoch": 300}
    write_torch(tmp_path / "old.pth", {"meta": meta, "state_dict": state | beside})
    loaded = pretrained.load_checkpoint(tmp_path / "old.pth", model_kwargs={"num_heads": 2})
    assert_equal_trees(loaded.variables, names.read(table, state))
    assert loaded.class_names == ("cat", "dog", "emu")
    with pytest.raises(ConfigError, match="no EMA weights"):
        pretrained.load_checkpoint(tmp_path / "old.pth", ema=True)
