"""Weights that a training script saved with more beside them, and files made to do harm."""

import io
import json
import pickle
import struct

import jax
import numpy as np
import pytest
from pretrained.convert_test import make_source
from pretrained.formats_test import MAGIC, SYSTEM, as_zip
from safetensors.numpy import load_file, save_file

from deit_jax import pretrained
from deit_jax.errors import ConfigError, printable
from deit_jax.evaluation import classify
from deit_jax.pretrained import convert
from deit_jax.pretrained.formats.pickles import load_state
from deit_jax.pretrained.formats.safetensors_file import read_safetensors, write_safetensors
from deit_jax.pretrained.formats.torch_file import read_torch


@pytest.mark.parametrize("program", ["official", "timm"])
def test_what_training_elsewhere_saves_is_read_raw_and_ema(vectors, program):
    raw, ema = (
        pretrained.load_checkpoint(
            vectors / f"checkpoint_{program}.pth", ema=ema, model_kwargs={"num_heads": 2}
        )
        for ema in (False, True)
    )
    assert raw.create_model() == ema.create_model()
    path = vectors / f"checkpoint_{program}.pth"
    assert raw.label.startswith(f"the raw weights of {path} (it has EMA weights too: --ema")
    assert ema.label == f"the EMA weights of {path}"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), raw.variables, ema.variables)


def refusal(path, **options):
    with pytest.raises(ConfigError) as caught:
        pretrained.load_checkpoint(path, **options)
    text = str(caught.value)
    assert str(path.parent) in text and text.isprintable() and len(text) < 1500
    return text


def instructions(value):
    """Those that leave `value` on the stack, without memo."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 2)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()[2:-1]


def tensor(shape, strides, *, count=4):
    """A pickle of `{"a": tensor}` whose storage `0` is said to have `count` numbers."""
    storage = b"(" + instructions("storage") + b"ctorch\nFloatStorage\n" + instructions("0")
    storage += instructions("cpu") + instructions(count) + b"tQ"
    view = instructions(0) + instructions(shape) + instructions(strides) + b"\x89N"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tR"
    return b"\x80\x02}" + instructions("a") + rebuilt + b"s."


def legacy(state, *, keys=("0",), counts=(4,)):
    stream = MAGIC + SYSTEM + state + pickle.dumps(list(keys), 2)
    return stream + b"".join(struct.pack("<Q", count) + bytes(16) for count in counts)


def test_strides_of_an_axis_of_one_may_be_anything(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(legacy(tensor((1, 4), (2**70, 1))))
    np.testing.assert_array_equal(read_torch(path)["a"], np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (legacy(tensor((0, 2**70), (1, 1))), "damaged"),
        (legacy(tensor((4,), (1,), count=2**62), counts=[2**62]), "storage 0 has 16 bytes"),
        (legacy(b"\x80\x02}.", keys=[("0",)]), "keys of the storages"),
        (as_zip(b"\x80\x02}X\x05\x00\x00\x00\x1b[31mK\x01s."), r"\x1b[31m"),
    ],
)
def test_odd_torch_files_are_refused(tmp_path, content, text):
    path = tmp_path / "odd.pth"
    path.write_bytes(content)
    assert text in refusal(path)


def test_dicts_that_hold_one_another_many_times_are_followed_once(tmp_path):
    """Five levels of 3,000 references each: 10^17 steps if each were followed."""
    content = b"\x80\x02}"
    for level in range(5):
        keys = b"".join(b"M" + struct.pack("<H", key) + b"h\x00" for key in range(3000))
        content += b"q\x00}(" + keys + b"u" if level else b""
    path = tmp_path / "laughs.pth"
    path.write_bytes(as_zip(content + b"."))
    assert "not tensors" in refusal(path)
    assert isinstance(load_state(io.BytesIO(content + b".")), dict)


NOTES = [
    ({"model": {"num_classes": 3}}, "notes on the model"),
    ({"model": "deit_tiny_patch16_224"}, "notes on the model"),
    ({"model": {"name": "deit_tiny_patch16_224", "depth": 10**6}}, "blocks"),
    ({"model": {"name": "deit_tiny_patch16_224", "num_classes": 10**12}}, "num_classes cannot"),
    ({"model": {"name": "deit_tiny_patch16_224", "embed_dim": "8"}}, "embed_dim takes int"),
    ({"model": {"name": "deit_tiny_patch16_224", "epsilon": float("nan")}}, "epsilon takes float"),
    ({"model": {"name": "deit_tiny_patch16_224", "epsilon": 0}}, "epsilon must"),
    ({"model": {"name": "regnety_002", "se_ratio": 0.0}}, "se_ratio"),
    ({"class_names": ["cat"]}, "1 class names for 3 classes"),
    ({"class_names": 7}, "not a list of names"),
    ({"image": [1]}, "notes on the image"),
    ({"image": {"mean": "abc"}}, "mean must be 3 numbers"),
    ({"image": {"mean": [0, 0, float("nan")]}}, "mean must be 3 numbers"),
    ({"image": {"std": [0.2, 0.0, 0.2]}}, "std must be 3 numbers"),
    ({"image": {"crop_ratio": 0}}, "crop_ratio cannot be 0"),
]


@pytest.mark.parametrize(("change", "text"), NOTES)
def test_odd_notes_with_a_right_digest_are_refused(tmp_path, change, text):
    tensors, notes = read_safetensors(make_source(tmp_path, "plain"))
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, tensors, notes | change)
    assert text in refusal(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[1]", "not the settings"),
        ("[" * 100_000, "damaged file"),
        ('{"model_type": "vit", "id2label": ["a"]}', "not the settings"),
        ('{"model_type": "vit", "id2label": {"0": 7}}', "not a list of names"),
        ('{"model_type": "vit", "layer_norm_eps": NaN}', "epsilon takes float"),
        ('{"model_type": "vit", "num_attention_heads": "2"}', "num_heads takes int"),
        ('{"model_type": "\\u001b[31m"}', "known: deit"),
    ],
)
def test_odd_settings_beside_a_file_are_refused(tmp_path, content, text):
    folder = tmp_path / "hf"
    convert.convert(make_source(tmp_path, "plain"), folder, to="hf")
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights)
    settings = json.loads((folder / "config.json").read_text())
    try:
        content = json.dumps(settings | json.loads(content))
    except (TypeError, RecursionError):
        pass
    (folder / "config.json").write_text(content)
    assert text in refusal(folder)


def test_class_names_are_shown_without_control_characters(tmp_path):
    loaded = pretrained.load_checkpoint(make_source(tmp_path, "plain", ("a\x1b[2J", "b", "ç")))
    assert classify.readable_names(loaded) == ["a\\x1b[2J", "b", "ç"]
    assert printable("a" * 20, limit=5) == "aaaaa ..."
