"""Stored labels: what is kept, in which files, what is refused, and what a kill leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.data.arrays import ArraySource
from deit_jax.errors import ConfigError
from deit_jax.teacher import Recorder, files, kinds, manifest, stored
from deit_jax.teacher.recorder import RecordingError

BATCH, STEPS, CLASSES = 6, 5, 10
HARD = kinds.Hard(CLASSES)


def logits(seed, rows=BATCH, classes=CLASSES):
    return np.random.RandomState(seed).normal(0, 3, (rows, classes)).astype(np.float32)


def make_manifest(kind=HARD, *, teacher="t", **inputs):
    sizes = {"train.batch_size": BATCH, "steps_per_epoch": STEPS, "augment.mixup": 0.8}
    about = {"digest": teacher, "description": "a teacher"}
    return manifest.Manifest(kind, sizes | {"seed": 0} | inputs, about)


def record(folder, steps, *, kind=HARD, notes=None, flush=True, **about):
    """Labels of these steps, as a run that is then killed or, with `flush`, saved."""
    print_line = (notes if notes is not None else []).append
    with Recorder(folder, make_manifest(kind, **about), made={}, print_line=print_line) as recorder:
        for step in steps:
            recorder.add(step, kind.encode(jnp.asarray(logits(step))))
        if flush:
            recorder.flush()


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.labels")}


@pytest.fixture
def whole(tmp_path):
    """The labels of two epochs."""
    record(tmp_path / "whole", range(2 * STEPS))
    return tmp_path / "whole"


def open_labels(folder, needed=2 * STEPS, *, steps=None, distillation="hard", **inputs):
    options = {"num_classes": CLASSES, "distillation": distillation, "needed": needed}
    ours = make_manifest(**inputs).inputs
    return stored.open_labels(str(folder), inputs=ours, steps=steps or needed, **options)


def choices(labels, start, count):
    """The first choices that a run reads from `start` on."""
    records = labels.records(start)
    try:
        return [next(records)["choice"].tolist() for _ in range(count)]
    finally:
        records.close()


def expected(*steps):
    return [logits(step).argmax(-1).tolist() for step in steps]


def test_hard_labels_take_two_bytes_and_keep_the_first_choice():
    x = logits(0, classes=1000)
    kind = kinds.make_kind(1000, True)
    rows = jax.tree.map(np.asarray, kind.encode(x))
    assert kind.row.itemsize == 2 and rows["choice"].dtype == np.uint16
    np.testing.assert_array_equal(kind.decode(rows).argmax(-1), x.argmax(-1))
    tied = np.zeros((1, 4), np.float32)
    assert kinds.Hard(4).encode(tied)["choice"] == 0


def test_soft_labels_of_all_classes_are_the_logits():
    kind = kinds.make_kind(CLASSES, False)
    np.testing.assert_array_equal(kind.decode(kind.encode(logits(0))), logits(0))
    assert kind.row.itemsize == 4 * CLASSES


@pytest.mark.parametrize("k", [1, 3, 9])
def test_the_largest_logits_keep_their_probabilities_and_the_rest_its_mass(k):
    kind, x = kinds.make_kind(CLASSES, False, label_k=k), jnp.asarray(logits(0))
    rows = kind.encode(x)
    found, exact = jax.nn.softmax(kind.decode(rows)), np.asarray(jax.nn.softmax(x))
    order = np.argsort(-x)
    take = lambda p, part: np.take_along_axis(np.asarray(p), part, axis=1)
    np.testing.assert_allclose(take(found, order[:, :k]), take(exact, order[:, :k]), rtol=1e-5)
    np.testing.assert_allclose(np.sum(found, axis=1), 1, rtol=1e-5)
    rest = take(found, order[:, k:])
    np.testing.assert_allclose(rest, rest[:, :1] * np.ones_like(rest), rtol=1e-5)
    assert kind.row.itemsize == 6 * k + 4 and rows["index"].dtype == jnp.uint16


def test_kinds_that_cannot_be():
    with pytest.raises(ConfigError, match="1 to 10, the number of classes, not 11"):
        kinds.make_kind(CLASSES, True, label_k=11)
    with pytest.raises(ConfigError, match="at most 65,536 classes"):
        kinds.make_kind(70_000, True)
    for kind in (HARD, kinds.Soft(CLASSES, 3)):
        assert kinds.from_json(json.loads(json.dumps(kinds.to_json(kind)))) == kind


def test_a_run_reads_from_any_step_what_was_recorded(whole):
    labels = open_labels(whole)
    assert choices(labels, 0, 10) == expected(*range(10))
    assert choices(labels, 7, 3) == expected(7, 8, 9)


def test_epochs_repeat(whole):
    labels = open_labels(whole, steps=STEPS, needed=STEPS)
    assert choices(labels, 3, 5) == expected(3, 4, 0, 1, 2)


def test_small_chunks_are_read_as_large_ones(whole, monkeypatch):
    monkeypatch.setattr(stored, "_CHUNK_STEPS", 2)
    assert choices(open_labels(whole), 1, 9) == expected(*range(1, 10))


@pytest.mark.parametrize("killed_at", [0, 1, 4, 5, 7, 9])
def test_a_killed_writer_goes_on_to_the_same_files(whole, tmp_path, killed_at):
    folder = tmp_path / "resumed"
    saved = killed_at // 2
    record(folder, range(saved))
    record(folder, range(saved, killed_at), flush=False)
    record(folder, range(saved, 2 * STEPS))
    assert content(folder) == content(whole)


def test_what_was_written_of_later_steps_is_replaced(whole):
    """A run whose newest checkpoint was damaged resumes from an older one."""
    record(whole, range(2, 4))
    labels = open_labels(whole, needed=4)
    assert choices(labels, 0, 4) == expected(*range(4))


def test_a_run_that_is_stopped_leaves_a_set_as_long_as_it_was(whole):
    before = content(whole)
    record(whole, range(3))
    assert content(whole) == before
    record(whole, range(2, STEPS + 1))
    assert content(whole) == before


def test_an_epoch_whose_beginning_is_missing_is_left_out_with_a_note(tmp_path):
    notes = []
    record(tmp_path, range(2, 2 * STEPS), notes=notes)
    assert list(content(tmp_path)) == ["epoch-00001.labels"]
    assert len(notes) == 1 and "epoch-00000.labels lacks the steps before 2" in notes[0]


def test_a_damaged_record_ends_the_beginning(whole):
    file = whole / "epoch-00000.labels"
    data = bytearray(file.read_bytes())
    data[-BATCH * 2 - 8 - 1] ^= 1
    file.write_bytes(data)
    assert len(make_manifest().files(whole).beginning(0)) == (STEPS - 2) * (2 * BATCH + 8)


def test_labels_that_cannot_be_written_stop_the_run(tmp_path):
    with pytest.raises(RecordingError, match="cannot be written to .*blocked"):
        with Recorder(tmp_path / "blocked", make_manifest(), made={}, print_line=print) as recorder:
            (tmp_path / "blocked" / "epoch-00000.labels").mkdir()
            (tmp_path / "blocked" / "epoch-00000.labels" / "x").touch()
            recorder.add(0, HARD.encode(jnp.asarray(logits(0))))
            recorder.flush()


def test_a_folder_with_other_labels_is_not_written_to(whole):
    before = content(whole)
    with pytest.raises(ConfigError, match="augment.mixup: 0.8 there, 0 here; choose another"):
        record(whole, range(2), **{"augment.mixup": 0.0})
    with pytest.raises(ConfigError, match="teacher: t there, u here"):
        record(whole, range(2), teacher="u")
    with pytest.raises(ConfigError, match="labels: hard labels .* there, 3 of 10 logits"):
        record(whole, range(2), kind=kinds.Soft(CLASSES, 3))
    assert content(whole) == before


def flip(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def other_set(folder):
    record(folder / "other", range(2 * STEPS), seed=1)
    (folder / "other" / "epoch-00001.labels").replace(folder / "epoch-00001.labels")


def swap(folder):
    first, second = folder / "epoch-00000.labels", folder / "epoch-00001.labels"
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def cut(folder, by):
    file = folder / "epoch-00001.labels"
    file.write_bytes(file.read_bytes()[:-by])


def add(folder):
    file = folder / "epoch-00001.labels"
    file.write_bytes(file.read_bytes() + b"x")


RECORD = 2 * BATCH + 8
# name -> (damage, what the line says); all of it is found before the run starts.
DAMAGE = {
    "missing": (lambda f: (f / "epoch-00001.labels").unlink(), "is missing"),
    "cut": (lambda f: cut(f, 3), "is cut"),
    "cut to nothing": (lambda f: (f / "epoch-00001.labels").write_bytes(b""), "is cut"),
    "cut at a step": (lambda f: cut(f, RECORD), "has 4 of 5 steps"),
    "added to": (add, "is cut or has been added to"),
    "header": (lambda f: flip(f / "epoch-00001.labels", 30), "is damaged in its header"),
    "magic": (lambda f: flip(f / "epoch-00001.labels", 0), "is damaged in its header"),
    "of another run": (other_set, "belongs to other labels"),
    "swapped": (swap, "epoch-00000.labels belongs to other labels"),
    "manifest": (lambda f: flip(f / "labels.json", 60), "labels.json is damaged"),
    "no manifest": (lambda f: (f / "labels.json").unlink(), "has no labels.json"),
    "no folder": (lambda f: f.rename(f.with_name("gone")), "has no labels.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_that_names_the_file(whole, name):
    damage, text = DAMAGE[name]
    damage(whole)
    with pytest.raises(ConfigError) as caught:
        open_labels(whole)
    line = str(caught.value)
    assert text in line and str(whole) in line and "\n" not in line


@pytest.mark.parametrize("position", range(8, RECORD, 5))
def test_a_flipped_bit_is_found_before_the_step_that_needs_it(whole, position):
    file = whole / "epoch-00001.labels"
    flip(file, len(file.read_bytes()) - 2 * RECORD + position)
    labels = open_labels(whole)
    assert choices(labels, 0, 8) == expected(*range(8))
    with pytest.raises(files.LabelError, match="epoch-00001.labels is damaged at step 3 of the"):
        choices(labels, 0, 9)


def test_a_file_that_vanishes_while_the_run_goes_is_named_before_its_step(whole, monkeypatch):
    monkeypatch.setattr(stored, "_CHUNK_STEPS", 1)
    labels = open_labels(whole)
    records = labels.records(0)
    found = [next(records)["choice"].tolist()]
    (whole / "epoch-00001.labels").unlink()
    with pytest.raises(files.LabelError, match="epoch-00001.labels is missing"):
        for rows in records:
            found.append(rows["choice"].tolist())
    assert found == expected(*range(5))


def test_fewer_epochs_than_the_run_needs(whole):
    with pytest.raises(ConfigError) as caught:
        open_labels(whole, needed=4 * STEPS)
    line = str(caught.value)
    assert "epoch-00002.labels is missing" in line and "--epochs=2:3" in line
    assert "label_epochs=2 repeats the first 2" in line
    open_labels(whole, needed=2 * STEPS, steps=4 * STEPS)


def test_labels_of_other_images_are_refused_with_the_keys_that_differ(whole):
    with pytest.raises(ConfigError) as caught:
        open_labels(whole, seed=3, **{"augment.mixup": 0.0, "augment.new": True})
    line = str(caught.value)
    for text in (
        "augment.mixup: 0.8 there, 0 here",
        "seed: 0 there, 3 here",
        "augment.new: absent",
    ):
        assert text in line
    with pytest.raises(ConfigError, match="are hard, but loss.distillation='soft' needs"):
        open_labels(whole, distillation="soft")


def test_the_digest_of_the_data_is_that_of_its_images():
    pixels = np.random.RandomState(0).randint(0, 256, (9, 4, 4, 3), np.uint8)
    digest = lambda images: manifest.data_digest(ArraySource(images, np.zeros(len(images)), "x"))
    assert digest(pixels) == digest(pixels.copy())
    changed = pixels.copy()
    changed[5, 0, 0, 0] ^= 1
    others = [changed, pixels[:8], pixels[::-1]]
    assert len({digest(images) for images in [pixels, *others]}) == 4
