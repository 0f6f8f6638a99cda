"""Photos of one's own without splits, in .zip files, of other formats, few of them."""

import os
import zipfile

import numpy as np
import pytest
from data.exif_test import marked, upright
from data.folder_test import fill, jpeg
from data.pipeline_test import digest, first_batches

from deit_jax import data
from deit_jax.data import splits
from deit_jax.errors import ConfigError


def photos(root, **classes):
    """`root/<class>/N.jpg`, all different."""
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{i}.jpg").write_bytes(jpeg((number * 100 + i) % 256))
    return root


def sides(opened, root):
    """Relative name -> side."""
    return {
        os.path.relpath(source.record_name(i), root): side
        for side, source in (("train", opened.train), ("val", opened.eval))
        for i in range(len(source))
    }


def zipped(folder, target, top="", extra=()):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, top + str(path.relative_to(folder)))
        for name in extra:
            archive.writestr(name, b"what systems add")
    return str(target)


def open_folder(path, **options):
    return data.open_data(source="folder", path=str(path), **options)


def test_a_split_is_stratified_and_stays_when_photos_are_added(tmp_path):
    before = sides(open_folder(photos(tmp_path, cat=40, dog=60, emu=2)), tmp_path)
    after = sides(open_folder(photos(tmp_path, cat=70, dog=61, emu=2, fox=9)), tmp_path)
    assert len(before) == 102 and len(after) == 142
    assert all(after[name] == side for name, side in before.items())
    for name, count in (("cat", 40), ("dog", 60), ("emu", 2)):
        held = sum(side == "val" for file, side in before.items() if file.startswith(name))
        assert 1 <= held < count and abs(held / count - 0.2) < (0.1 if count > 2 else 0.4)
    other = sides(open_folder(tmp_path, split_seed=1), tmp_path)
    assert other != after and other.keys() == after.keys()
    half = sides(open_folder(tmp_path, val_share=0.5), tmp_path)
    # A larger share only adds.
    assert all(half[n] == "val" for n, side in after.items() if side == "val" and "emu" not in n)


def test_every_class_of_two_has_both_sides():
    for seed in range(40):
        for count in (2, 3, 4):
            validating = splits.validates([f"a/{i}.jpg" for i in range(count)], 0.2, seed)
            assert 0 < validating.sum() < count
        assert not splits.validates(["a/0.jpg"], 0.2, seed).any()
    names = [f"a/{i}.jpg" for i in range(20_000)]
    assert abs(splits.validates(names, 0.2, 0).mean() - 0.2) < 0.01
    # Letters with accents, as Linux and as macOS store them.
    both = [
        splits.validates([f"a/{c}{i}" for i in range(99)], 0.5, 0) for c in ("\u00e9", "e\u0301")
    ]
    np.testing.assert_array_equal(*both)


def test_single_photos_are_evaluated_on_with_a_note(tmp_path):
    opened = open_folder(photos(tmp_path, cat=1, dog=1))
    assert len(opened.train) == len(opened.eval) == 2
    assert any("evaluation is on the training photos" in note for note in opened.notes)


@pytest.mark.parametrize("top", ["", "PHOTOS/", "a/b/"])
@pytest.mark.parametrize("with_splits", [False, True])
def test_a_zip_gives_the_batches_of_its_folder(tmp_path, top, with_splits):
    folder = tmp_path / "folder"
    if with_splits:
        fill(folder, train={"cat": 9, "dog": 7}, val={"cat": 3, "dog": 2})
    else:
        photos(folder, cat=12, dog=9)
    (folder / ("train" if with_splits else ".") / "cat" / "inner").mkdir()
    extra = ("__MACOSX/._x.jpg", f"{top}.DS_Store", f"__MACOSX/{top}cat/._0.jpg")
    archive = zipped(folder, tmp_path / "photos.zip", top, extra)
    opened = [open_folder(path) for path in (folder, archive)]
    assert opened[0].class_names == opened[1].class_names == ("cat", "dog")
    assert opened[1].notes == ()
    content = [
        digest(first_batches(data.train_batches(o.train, 8, canvas=16), 3))
        + digest(first_batches(data.eval_batches(o.eval, 4, 16, image_size=8), 2))
        for o in opened
    ]
    assert content[0] == content[1]
    assert opened[1].train.record_name(0).startswith(f"{archive}/{top}")


def test_names_of_a_zip_that_macos_made(tmp_path):
    """They are UTF-8 without the flag that says so."""
    archive = tmp_path / "a.zip"
    zipped(photos(tmp_path / "folder", **{"caf\u00e9": 3}), archive)
    content = archive.read_bytes()
    for mark, flag in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        parts = content.split(mark)
        at = flag - 4 + 1
        parts[1:] = [p[:at] + bytes([p[at] & ~8]) + p[at + 1 :] for p in parts[1:]]
        content = mark.join(parts)
    archive.write_bytes(content)
    assert open_folder(archive).class_names == ("caf\u00e9",)


def test_damaged_members_of_a_zip_are_bad_samples(tmp_path):
    archive = tmp_path / "a.zip"
    zipped(photos(tmp_path / "folder", cat=20), archive)
    content = bytearray(archive.read_bytes())
    photo = (tmp_path / "folder" / "cat" / "7.jpg").read_bytes()
    content[content.index(photo) + 300] ^= 1
    archive.write_bytes(content)
    opened = open_folder(archive)
    found = {}
    for source in (opened.train, opened.eval):
        records, _ = source.get(np.arange(len(source)))
        bad = [i for i, r in enumerate(records) if isinstance(r, data.CorruptImage)]
        found |= {source.record_name(i): str(records[i]) for i in bad}
    assert list(found) == [f"{archive}/cat/7.jpg"] and "CRC" in found[f"{archive}/cat/7.jpg"]


def test_files_that_are_no_archives_and_encrypted_ones(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 and then nothing")
    with pytest.raises(ConfigError, match="a.zip is neither a folder nor a readable .zip"):
        open_folder(tmp_path / "a.zip")
    archive = tmp_path / "b.zip"
    zipped(photos(tmp_path / "folder", cat=2), archive)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ConfigError, match="b.zip is encrypted; unpack it"):
        open_folder(archive)


def test_other_formats_are_counted_with_the_remedy(tmp_path):
    photos(tmp_path, cat=4)
    for name in ("1.HEIC", "2.heic", "3.gif", "notes.txt", ".hidden"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    (note,) = open_folder(tmp_path).notes
    assert note.startswith("4 files ignored: 2 .heic, 1 .gif, 1 .txt; convert HEIC files to JPEG")
    assert "magick mogrify -format jpg *.heic" in note
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.heic").write_bytes(b"x")
    with pytest.raises(ConfigError, match="have no images: dog; .*convert HEIC files to JPEG"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("folders", "options", "message"),
    [
        (("Train/cat", "Test/cat"), {}, "named like splits: Test, Train.*train_split=Test"),
        (("train/cat",), {}, "unknown split folder.*'val'.*give path=.*train$"),
        (("cat",), {"val_share": 0.0}, "val_share must be above 0 and below 1, not 0"),
        (("cat",), {"val_share": 1.0}, "val_share must be above 0 and below 1, not 1"),
        (("cat",), {"train_split": "training"}, "unknown split folder.*'training'; known: cat"),
        ((".",), {}, "has no class folders"),
    ],
)
def test_mistakes(tmp_path, folders, options, message):
    for folder in folders:
        photos(tmp_path, **{folder: 2})
    with pytest.raises(ConfigError, match=message):
        open_folder(tmp_path, **options)


def test_a_class_may_be_called_train(tmp_path):
    assert open_folder(photos(tmp_path, train=3, car=3)).class_names == ("car", "train")


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    photos(tmp_path / "elsewhere", cat=3)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "elsewhere" / "cat" / "again").symlink_to(tmp_path / "elsewhere" / "cat")
    opened = open_folder(tmp_path / "photos")
    assert len(opened.train) + len(opened.eval) == 3


def test_exif_is_applied_unless_the_option_is_off(tmp_path):
    """The eight orientations of one scene, in a folder and its .zip."""
    for orientation in range(1, 9):
        for split in ("train", "val"):
            (tmp_path / "f" / split / "a").mkdir(parents=True, exist_ok=True)
            file = tmp_path / "f" / split / "a" / f"{orientation}.jpg"
            file.write_bytes(marked("JPEG", orientation))
    for path in (tmp_path / "f", zipped(tmp_path / "f", tmp_path / "f.zip")):
        for options in ({}, {"exif_orientation": False}):
            source = open_folder(path, **options).train
            (batch,) = first_batches(data.train_batches(source, 8, canvas=96), 1)
            for row, record in enumerate(batch["index"]):
                height, width = batch["size"][row]
                (file,), _ = source.get(np.array([record]))
                expected = data.decode_image(file) if options else upright(file)
                np.testing.assert_array_equal(batch["canvas"][row, :height, :width], expected)
