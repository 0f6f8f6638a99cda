"""`deit-jax data`: inspecting a data set, and decoding all of it."""

import argparse
import io

import pytest
from PIL import Image

from deit_jax import data
from deit_jax.cli import data as command
from deit_jax.errors import ConfigError


def call(*arguments):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["data", *arguments])
    return args.run(args)


def test_report_names_what_cannot_be_decoded(tmp_path, capsys):
    with io.BytesIO() as file:
        Image.new("RGB", (30, 20)).save(file, "JPEG")
        jpeg = file.getvalue()
    for split, content in (("train", jpeg), ("val", jpeg[:200])):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "a.jpg").write_bytes(jpeg)
        (tmp_path / split / "cat" / "b.jpg").write_bytes(content)
    (tmp_path / "val" / "cat" / "c.jpg").symlink_to("/nowhere/x")
    (tmp_path / "val" / "cat" / "d.webp").write_bytes(
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(9)
    )
    where = ("--source=folder", f"--path={tmp_path}")
    assert call(*where) == 0
    assert call(*where, "--decode", "--canvas=25") == 1
    printed = capsys.readouterr().out
    assert "train 2, val 4 images, 1 classes" in printed
    assert "2 of 2 images decoded; longer side 30 to 30" in printed
    assert "median 30; 100.0% exceed 25" in printed
    assert f"cannot decode {tmp_path}/val/cat/b.jpg" in printed
    assert "val/cat/c.jpg: No such file" in printed and "val/cat/d.webp: animated" in printed


def test_split_ignored_files_and_classes_are_shown(tmp_path, capsys):
    for name, count in (("cat", 30), ("dog", 20)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.jpg").write_bytes(b"x")
    (tmp_path / "cat" / "phone.heic").write_bytes(b"x")
    assert call("--source=folder", f"--path={tmp_path}", "--val_share=0.3", "--split_seed=1") == 0
    printed = capsys.readouterr().out
    opened = data.open_data(source="folder", path=str(tmp_path), val_share=0.3, split_seed=1)
    sizes = [len(opened.train), len(opened.eval)]
    assert f"train {sizes[0]}, validation {sizes[1]} images, 2 classes, split by name" in printed
    assert "note: 1 file ignored: 1 .heic; convert HEIC files to JPEG: magick" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    assert rows[0] == ["class", "train", "eval"] and [row[0] for row in rows[1:]] == ["cat", "dog"]
    assert [sum(int(row[i]) for row in rows[1:]) for i in (1, 2)] == sizes


def test_digits(capsys):
    assert call("--source=digits", "--decode") == 0
    assert "1442 of 1442 images decoded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source=digits", "--name=mnist"), "'digits' does not take --name; it takes: none"),
        (("--source=arrays", "--data_dir=x", "--path=y"), "not take --data_dir; it takes: --path$"),
        (("--source=foldr",), "unknown source 'foldr'; known: folder"),
    ],
)
def test_options_of_another_source_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        call(*arguments)


def test_the_classes_as_a_figure(tmp_path, capsys):
    for name, count in (("cat", 4), ("dog", 2)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            picture = Image.new("RGB", (30 + number, 20), "red")
            picture.save(tmp_path / "photos" / name / f"{number}.jpg")
    (tmp_path / "photos" / "dog" / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    png = tmp_path / "photos.png"
    where = ("--source=folder", f"--path={tmp_path / 'photos'}", f"--png={png}")
    assert call(*where) == 0
    whole = png.read_bytes()
    assert call(*where, "--decode") == 1
    assert f"photos of each class: {png}" in capsys.readouterr().out
    height = lambda content: Image.open(io.BytesIO(content)).height
    assert height(png.read_bytes()) > height(whole), "the damaged file is named below"


def test_a_figure_needs_to_know_the_labels(tmp_path, monkeypatch):
    opened = data.open_data(source="digits")
    monkeypatch.setattr(opened.train, "labels", None)
    with pytest.raises(ConfigError, match="--png needs all labels at once"):
        command.draw(opened, str(tmp_path / "x.png"), notes=[])
