"""`deit-jax features`: the tokens of every photo, under its name."""

import zipfile

import jax
import numpy as np
import pytest
from PIL import Image
from pretrained.convert_test import make_source, run

from deit_jax import models, pretrained, storage


def make_photos(folder, names):
    """PNG files of 16 x 16 pixels, which the small models take as they are."""
    pixels = {}
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels[name] = np.random.RandomState(number).randint(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels[name]).save(path)
    return pixels


def features_of(capsys, tmp_path, source, photos, *options):
    out = tmp_path / "out.npz"
    code, printed, error = run(
        capsys, "features", "--checkpoint", source, photos, out, "--crop-ratio=1", *options
    )
    assert code == 0, error
    with np.load(out) as file:
        return dict(file), printed


@pytest.mark.parametrize("key", ["distilled", "plain"])
def test_tokens_are_the_models(tmp_path, capsys, key):
    source, names = make_source(tmp_path, key), [f"{i}.png" for i in range(11)]
    pixels = make_photos(tmp_path / "photos", names)
    found, _ = features_of(capsys, tmp_path, source, tmp_path / "photos", "--batch-size=3")
    assert found["names"].tolist() == sorted(names) and "labels" not in found
    loaded = pretrained.load_checkpoint(source)
    model = loaded.create_model()
    image = np.stack([(pixels[name] / 255 - loaded.mean) / loaded.std for name in sorted(names)])
    forward = jax.jit(lambda image: models.apply(model, loaded.variables, image, capture=True))
    output, features = forward(image.astype(np.float32))
    tokens = np.asarray(features["norm"])
    first = 2 if key == "distilled" else 1
    np.testing.assert_allclose(found["class_token"], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["patch_mean"], tokens[:, first:].mean(1), atol=1e-5)
    assert ("distillation_token" in found) == (key == "distilled")
    head = loaded.variables["params"]["head"]
    logits = found["class_token"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, output.logits, atol=1e-4)
    if key == "distilled":
        np.testing.assert_allclose(found["distillation_token"], tokens[:, 1], atol=1e-5)


def test_a_convnet_has_the_mean_that_its_head_takes(tmp_path, capsys):
    source = make_source(tmp_path, "regnet")
    make_photos(tmp_path / "photos", ["a.png", "b.png"])
    found, _ = features_of(capsys, tmp_path, source, tmp_path / "photos")
    assert found["patch_mean"].shape == (2, 32) and not found.keys() & {"class_token"}


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_classes_and_photos_that_cannot_be_read(tmp_path, capsys, form):
    source, photos = make_source(tmp_path, "plain"), tmp_path / "photos"
    names = ["train/emu/1.png", "train/cat/deep/2.png", "val/cat/3.png"]
    make_photos(photos, names)
    (photos / "val" / "cat" / "broken.jpg").write_text("no image")
    (photos / "val" / "cat" / "notes.txt").write_text("no image")
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
            for file in [file for file in photos.rglob("*") if file.is_file()]:
                archive.write(file, file.relative_to(tmp_path))
        photos = tmp_path / "photos.zip"
    found, printed = features_of(capsys, tmp_path, source, photos)
    prefix = "photos/" if form == "zip" else ""
    expected = {f"{prefix}{name}": ["cat", "emu"].index(name.split("/")[1]) for name in names}
    assert dict(zip(found["names"].tolist(), found["labels"].tolist(), strict=True)) == expected
    assert found["class_names"].tolist() == ["cat", "emu"]
    assert found["corrupt"].tolist() == [f"{prefix}val/cat/broken.jpg"]
    assert "left out, cannot be decoded: " in printed and "1 .txt" in printed
    assert len(found["class_token"]) == 3


def test_what_cannot_be_done_is_one_line(tmp_path, capsys):
    source = make_source(tmp_path, "plain")

    def refusal(*arguments):
        code, _, error = run(capsys, "features", "--checkpoint", source, *arguments)
        assert code == 2 and error.count("\n") == 1
        return error

    out = tmp_path / "out.npz"
    assert "no folder or .zip" in refusal(tmp_path / "gone", out)
    (tmp_path / "empty").mkdir()
    assert "has no photos; image files end in" in refusal(tmp_path / "empty", out)
    (tmp_path / "empty" / "a.jpg").write_text("no image")
    assert "none of the 1 records can be decoded" in refusal(tmp_path / "empty", out)
    assert "must be called *.npz" in refusal(tmp_path / "empty", tmp_path / "out.csv")
    assert not out.exists()


def test_photos_and_output_in_a_bucket(tmp_path, capsys, bucket, gcs):
    source = make_source(tmp_path, "plain")
    make_photos(tmp_path / "photos", ["cat/a.png"])
    photo = storage.path(f"gs://{bucket}/photos/cat/a.png")
    storage.write(photo, (tmp_path / "photos/cat/a.png").read_bytes())
    arguments = (f"gs://{bucket}/photos", f"gs://{bucket}/out.npz")
    code, printed, _ = run(capsys, "features", "--checkpoint", source, *arguments)
    assert code == 0 and "1 classes" in printed and "out.npz" in gcs.buckets[bucket]
