"""`deit-jax export`: the files give the model's answers, without this library."""

import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image
from pretrained.convert_test import MODELS, make_source, run

from deit_jax import models, pretrained

# What a user without this library writes.
READER = """
import json, sys
import jax.export, numpy
file, photo, out = sys.argv[1:]
model = jax.export.deserialize(bytearray(open(file, "rb").read()))
assert model.platforms == ("cpu", "cuda", "tpu")
batch = numpy.load(photo)
numpy.savez(out, **model.call(batch), **{f"one_{k}": v for k, v in model.call(batch[:1]).items()})
assert not [name for name in sys.modules if name.startswith(("deit_jax", "flax"))]
"""
SGN = ("regnety_040_sgn", MODELS["regnet"][1] | {"image_size": 32, "norm_group": 8})


def answers(loaded, image):
    """The outputs that a file must give."""
    model = loaded.create_model()
    logits, dist = jax.jit(lambda image: models.apply(model, loaded.variables, image))(image)
    scores = logits if dist is None else (logits + dist) / 2
    found = {"logits": logits, "dist_logits": dist, "probabilities": jax.nn.softmax(scores)}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def images(loaded, rows=3):
    shape = (rows, *loaded.create_model().image_size, 3)
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


def test_a_file_needs_jax_alone(tmp_path, capsys, monkeypatch):
    source = make_source(tmp_path, "distilled")
    file = tmp_path / "model.jax"
    code, out, _ = run(capsys, "export", "--checkpoint", source, file)
    assert code == 0 and f"wrote {file}" in out
    loaded = pretrained.load_checkpoint(source)
    image = images(loaded)
    np.save(tmp_path / "image.npy", image)
    monkeypatch.delenv("XLA_FLAGS")
    paths = (file, tmp_path / "image.npy", tmp_path / "answers.npz")
    command = [sys.executable, "-W", "error", "-c", READER, *map(str, paths)]
    subprocess.run(command, check=True, cwd=tmp_path, timeout=200)
    expected = answers(loaded, image)
    with np.load(tmp_path / "answers.npz") as file:
        found = dict(file)
    assert set(found) == {*expected, *(f"one_{name}" for name in expected)}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-6 * np.abs(value).max())
        np.testing.assert_allclose(found[f"one_{name}"], found[name][:1], rtol=1e-5)
    description = json.loads((tmp_path / "model.jax.json").read_text())
    assert description["class_names"] == ["cat", "dog", "emu"]
    assert description["input"]["shape"] == ["batch", 16, 16, 3]


@pytest.mark.parametrize("key", [*MODELS, "sgn"])
def test_onnx_computes_the_model(tmp_path, capsys, monkeypatch, key):
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    monkeypatch.setitem(MODELS, "sgn", SGN)
    source, file = make_source(tmp_path, key), tmp_path / "model.onnx"
    assert run(capsys, "export", "--checkpoint", source, file)[0] == 0
    loaded, evaluator = pretrained.load_checkpoint(source), ReferenceEvaluator(str(file))
    for rows in (1, 3):
        image = images(loaded, rows)
        expected = answers(loaded, image)
        found = evaluator.run(list(expected), {"image": image.transpose(0, 3, 1, 2)})
        for name, value in zip(expected, found, strict=True):
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(np.asarray(value), expected[name], rtol=0, atol=1e-5 * scale)
    inside = {prop.key: prop.value for prop in onnx.load(file).metadata_props}
    assert json.loads(inside["description"]) == json.loads(
        (tmp_path / "model.onnx.json").read_text()
    )


def test_the_description_prepares_a_photo_as_predict_does(tmp_path, capsys):
    source = make_source(tmp_path, "plain")
    assert run(capsys, "export", "--checkpoint", source, tmp_path / "model.jax")[0] == 0
    description = json.loads((tmp_path / "model.jax.json").read_text())
    steps = description["preprocessing"]
    photo = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8))
    photo.save(tmp_path / "photo.png")
    short = steps["resize_shorter_side"]
    resized = photo.resize((short * 60 // 40, short), Image.Resampling.BICUBIC)
    height, width = steps["center_crop"]
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    crop = np.asarray(resized)[top : top + height, left : left + width]
    image = (crop / steps["divide_by"] - steps["mean"]) / steps["std"]
    model = jax.export.deserialize(bytearray((tmp_path / "model.jax").read_bytes()))
    probabilities = model.call(image[None].astype(np.float32))["probabilities"][0]
    best = int(probabilities.argmax())
    first = f"{description['class_names'][best]} {probabilities[best]:.1%}"
    _, out, _ = run(capsys, "predict", "--checkpoint", source, "--top=1", tmp_path / "photo.png")
    assert out.splitlines()[1] == f"  class head: {first}"


def test_another_image_size(tmp_path, capsys):
    source = make_source(tmp_path, "plain")
    file = tmp_path / "model.jax"
    assert run(capsys, "export", "--checkpoint", source, file, "--image-size=32")[0] == 0
    model = jax.export.deserialize(bytearray(file.read_bytes()))
    assert model.call(np.zeros((2, 32, 32, 3), np.float32))["logits"].shape == (2, 3)


def test_what_cannot_be_exported_is_one_line(tmp_path, capsys, monkeypatch):
    source, file = make_source(tmp_path, "plain"), tmp_path / "model.onnx"

    def refusal(*arguments):
        code, _, error = run(capsys, "export", "--checkpoint", source, *arguments)
        assert code == 2 and error.count("\n") == 1
        return error

    assert "unknown format 'pb'; known: jax, onnx" in refusal(tmp_path / "model.pb")
    beside = tmp_path / "model.onnx.json"
    beside.touch()
    assert "model.onnx.json exists" in refusal(file)
    beside.unlink()
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "need the package onnx: pip install 'deit_jax[onnx]'" in refusal(file)
    assert not file.exists()


def test_into_a_bucket(tmp_path, capsys, bucket, gcs):
    source = make_source(tmp_path, "plain")
    code, out, _ = run(capsys, "export", "--checkpoint", source, f"gs://{bucket}/out/model.jax")
    assert code == 0 and f"wrote gs://{bucket}/out/model.jax.json" in out
    assert {"out/model.jax", "out/model.jax.json"} <= set(gcs.buckets[bucket])
