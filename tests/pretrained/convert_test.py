"""Round trips between the formats, and the command convert."""

import json

import numpy as np
import pytest
from reference.random_weights import random_state

from deit_jax import cli, models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.pretrained import convert
from deit_jax.pretrained.formats import names
from deit_jax.pretrained.formats.safetensors_file import read_safetensors, write_safetensors

SMALL = {"image_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
REGNET = {"widths": (16, 32), "depths": (1, 2), "group_sizes": (8, 8), "strides": (2, 2)}
MODELS = {
    "plain": ("deit_tiny_patch16_224", SMALL),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "deit3": ("deit3_small_patch16_224", SMALL),
    "regnet": ("regnety_002", REGNET | {"image_size": 32}),
}


def make_source(tmp_path, key, classes=("cat", "dog", "emu")):
    """A file for timm, as `convert` would write it."""
    name, kwargs = MODELS[key]
    kwargs = kwargs | {"num_classes": len(classes)}
    table = names.entries(models.create_model(name, **kwargs), "timm")
    path = tmp_path / f"{key}.safetensors"
    notes = {
        "model": {"name": name} | kwargs,
        "class_names": classes,
        "image": {"crop_ratio": 0.8, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.25)},
    }
    write_safetensors(path, random_state({e.names[0]: e.part_shape for e in table}), notes)
    return path


def run(capsys, *arguments):
    """(exit code, standard output, error output) of the `deit-jax` command."""
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("key", "to"),
    [
        *((key, to) for key in MODELS for to in ("timm", "jax")),
        *((key, "hf") for key in MODELS if key != "deit3"),
        *((key, "mmpretrain") for key in ("plain", "distilled")),
    ],
)
def test_round_trips_are_bit_identical(tmp_path, capsys, key, to):
    source = make_source(tmp_path, key)
    there = tmp_path / {"timm": "there.safetensors", "mmpretrain": "there.pth"}.get(to, "there")
    back = tmp_path / "back.safetensors"
    assert run(capsys, "convert", source, there, f"--to={to}")[0] == 0
    assert run(capsys, "convert", there, back)[0] == 0
    first, last = read_safetensors(source), read_safetensors(back)
    assert first[0].keys() <= last[0].keys()
    for name, array in first[0].items():
        np.testing.assert_array_equal(last[0][name], array, err_msg=name)
        assert last[0][name].dtype == array.dtype
    loaded = pretrained.load_checkpoint(there)
    assert loaded.create_model() == pretrained.load_checkpoint(source).create_model()
    assert loaded.class_names == ("cat", "dog", "emu")
    assert (loaded.image["crop_ratio"], loaded.mean) == (0.8, (0.5, 0.4, 0.3))
    assert loaded.format == {"jax": "deit_jax"}.get(to, to)


def test_hugging_face_names_and_parts(tmp_path, capsys):
    source = make_source(tmp_path, "distilled")
    assert run(capsys, "convert", source, tmp_path / "hf", "--to=hf")[0] == 0
    theirs, ours = (read_safetensors(p)[0] for p in (tmp_path / "hf" / "model.safetensors", source))
    layer = "deit.encoder.layer.1.attention.attention"
    parts = [theirs[f"{layer}.{part}.weight"] for part in ("query", "key", "value")]
    np.testing.assert_array_equal(np.concatenate(parts), ours["blocks.1.attn.qkv.weight"])
    np.testing.assert_array_equal(theirs["distillation_classifier.bias"], ours["head_dist.bias"])
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    assert config["layer_norm_eps"] == 1e-6
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 20}
    assert processor["image_mean"] == [0.5, 0.4, 0.3]


def test_what_cannot_be_expressed_is_refused(tmp_path, capsys):
    source = make_source(tmp_path, "deit3")
    code, _, error = run(capsys, "convert", source, tmp_path / "hf", "--to=hf")
    assert code == 2 and "use --to=timm" in error and not (tmp_path / "hf").exists()
    for key, text in (("deit3", "second LayerNorm"), ("regnet", "no MMPretrain name")):
        path = make_source(tmp_path, key)
        code, _, error = run(capsys, "convert", path, tmp_path / "a.pth", "--to=mmpretrain")
        assert code == 2 and text in error and not (tmp_path / "a.pth").exists()
    loaded = pretrained.load_checkpoint(make_source(tmp_path, "regnet"))
    odd = loaded.create_model().clone(strides=(1, 2))
    with pytest.raises(ConfigError, match="strides of 2"):
        convert.huggingface.model_config(odd, None)


def test_nothing_is_overwritten(tmp_path, capsys):
    source = make_source(tmp_path, "plain")
    before = source.read_bytes()
    code, _, error = run(capsys, "convert", source, source)
    assert code == 2 and error.count("\n") == 1 and "exists; remove it" in error
    assert source.read_bytes() == before


def test_errors_are_one_line_and_exit_code_two(tmp_path, capsys):
    (tmp_path / "empty.pth").write_bytes(b"")
    for arguments in (
        ["convert", tmp_path / "missing.pth", tmp_path / "out"],
        ["convert", tmp_path / "empty.pth", tmp_path / "out"],
        ["convert", make_source(tmp_path, "plain"), tmp_path / "out", "--to=timm"],
        ["predict", "--checkpoint", tmp_path / "missing.pth", __file__],
        ["predict", "--checkpoint", tmp_path / "missing.pth", tmp_path / "no.jpg"],
    ):
        code, out, error = run(capsys, *arguments)
        assert (code, out) == (2, "") and error.startswith("deit-jax ") and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
