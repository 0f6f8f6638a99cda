"""`deit-jax predict` and `explain MODEL`."""

import jax
import numpy as np
from PIL import Image
from pretrained.convert_test import make_source, run

from deit_jax import models, pretrained
from deit_jax.data import exif, imagenet_classes


def test_predict_equals_pillow_and_the_model(tmp_path, capsys):
    """Resize the short side, crop the center, normalize, all by Pillow and numpy."""
    source = make_source(tmp_path, "distilled")
    pixels = np.random.RandomState(0).randint(0, 256, (40, 60, 3), np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(pixels).save(photo)
    loaded = pretrained.load_checkpoint(source)
    resized = Image.fromarray(pixels).resize((30, 20), Image.Resampling.BICUBIC)
    crop = np.asarray(resized)[2:18, 7:23].astype(np.float32) / 255
    image = ((crop - loaded.mean) / loaded.std)[None].astype(np.float32)
    output = models.apply(loaded.create_model(), loaded.variables, image)
    heads = {
        "class head": output.logits,
        "distillation head": output.dist_logits,
        "mean of logits": (output.logits + output.dist_logits) / 2,
    }
    code, out, _ = run(capsys, "predict", "--checkpoint", source, photo, "--top=2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == str(photo) and len(lines) == 5
    for line, (head, logits) in zip(lines[1:4], heads.items(), strict=True):
        probabilities = np.asarray(jax.nn.softmax(logits[0]))
        best = np.argsort(-probabilities)[:2]
        expected = ", ".join(f"{'cat dog emu'.split()[k]} {probabilities[k]:.1%}" for k in best)
        assert line == f"  {head}: {expected}"
    assert lines[4].startswith("  sum of softmaxes: ")


def test_predict_refuses_what_is_not_an_image(tmp_path, capsys):
    source = make_source(tmp_path, "plain")
    (tmp_path / "text.jpg").write_text("no image")
    code, _, error = run(capsys, "predict", "--checkpoint", source, tmp_path / "text.jpg")
    assert code == 2 and "text.jpg" in error and error.count("\n") == 1
    animated = tmp_path / "animated.webp"
    animated.write_bytes(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(9))
    code, _, error = run(capsys, "predict", "--checkpoint", source, animated)
    assert code == 2 and "animated" in error and error.count("\n") == 1
    iphone = tmp_path / "iphone.jpg"
    iphone.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    code, _, error = run(capsys, "predict", "--checkpoint", source, iphone)
    assert code == 2 and "a HEIC file; convert HEIC files to JPEG: magick" in error


def test_predict_turns_photos_as_their_exif_orientation_says(tmp_path, capsys):
    """One scene, held in eight ways: the same answer for each file."""
    source = make_source(tmp_path, "distilled")
    scene = np.random.RandomState(1).randint(0, 256, (40, 60, 3), np.uint8)
    answers = []
    for orientation, turn in exif.TRANSPOSITIONS.items():
        undo = exif.TRANSPOSITIONS[{6: 8, 8: 6}[orientation]] if orientation in (6, 8) else turn
        tags = Image.Exif()
        tags[0x0112] = orientation
        photo = tmp_path / f"{orientation}.png"
        Image.fromarray(np.ascontiguousarray(undo(scene))).save(photo, exif=tags)
        code, out, _ = run(capsys, "predict", "--checkpoint", source, photo)
        assert code == 0
        answers.append(out.splitlines()[1:])
    assert all(answer == answers[0] for answer in answers)


def test_imagenet_names():
    from deit_jax.evaluation.classify import readable_names

    # Well-known places in the order of the labels.
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 999: "toilet tissue"}
    assert {k: imagenet_classes.class_names()[k] for k in known} == known
    assert imagenet_classes.class_name("n02099601") == "golden retriever"
    assert imagenet_classes.class_name("dog") == "dog"

    class Loaded:
        class_names, num_classes = ("n02099601", "pet"), 2

    assert readable_names(Loaded) == ["golden retriever", "pet"]
    Loaded.class_names, Loaded.num_classes = None, 1000
    assert readable_names(Loaded)[281] == "tabby"
    Loaded.num_classes = 2
    assert readable_names(Loaded) == ["class 0", "class 1"]


def test_explain_prints_size_cost_and_accuracy():
    from deit_jax.cli.explain import describe_model

    text = describe_model("deit_tiny_distilled_patch16_224")
    assert "5,910,800 parameters" in text and "1.261 G multiply-accumulates at 224x224" in text
    assert "top-1 74.476 %" in text and "b40b3cf7" in text
    assert "deit-tiny-distilled_3rdparty_in1k: top-1 74.51 %, top-5 91.9 %" in text
    assert "1.265 GFLOPs, https://download.openmmlab.com/" in text
    assert "no checkpoint of DeiT's authors" in describe_model("regnety_002")
