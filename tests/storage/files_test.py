"""Files and folders: the same on this machine, in a bucket, and through fsspec."""

import os

import numpy as np
import pytest

from deit_jax import storage
from deit_jax.storage import append, stores


@pytest.fixture(params=["local", "gs", "memory"])
def root(request, tmp_path):
    if request.param == "local":
        return tmp_path / "run"
    if request.param == "gs":
        return storage.path(f"gs://{request.getfixturevalue('bucket')}/run")
    return storage.path(f"memory://{tmp_path.name}/run")


def test_files_are_written_read_listed_and_removed(root):
    assert not root.exists() and not root.is_dir() and not root.is_file()
    storage.write(root / "a.txt", "text ä")
    storage.write(root / "deep" / "er" / "b.bin", bytes(range(256)))
    assert root.is_dir() and not root.is_file()
    assert (root / "a.txt").is_file() and not (root / "a.txt").is_dir()
    assert (root / "a.txt").read_text() == "text ä"
    assert (root / "a.txt").stat().st_size == 7
    assert sorted(path.name for path in root.iterdir()) == ["a.txt", "deep"]
    assert storage.files_under(root) == [root / "a.txt", root / "deep" / "er" / "b.bin"]
    assert storage.read_range(root / "deep" / "er" / "b.bin", 250, 3) == bytes([250, 251, 252])
    assert storage.read_range(root / "deep" / "er" / "b.bin", 250, 30) == bytes(range(250, 256))
    (root / "a.txt").unlink()
    (root / "a.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (root / "a.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (root / "a.txt").read_bytes()
    storage.move_tree(root / "deep", root / "other")
    assert storage.files_under(root) == [root / "other" / "er" / "b.bin"]
    storage.remove_tree(root)
    storage.remove_tree(root)
    assert not root.exists()


def test_what_was_not_written_to_its_end_is_not_there(root):
    storage.write(root / "a.npz", b"old")
    with pytest.raises(RuntimeError), storage.replacing(root / "a.npz") as file:
        file.write(b"half")
        raise RuntimeError
    with pytest.raises(RuntimeError), storage.local_output(root / "new.npz") as path:
        path.with_suffix(".partial").write_bytes(b"half")
        raise RuntimeError
    assert (root / "a.npz").read_bytes() == b"old" and not (root / "new.npz").exists()
    with storage.replacing(root / "a.npz") as file:
        np.savez(file, a=np.arange(3))
    with (root / "a.npz").open("rb") as file:
        assert np.load(file)["a"].tolist() == [0, 1, 2]
    with storage.replacing(root / "a.csv", "w", newline="") as file:
        file.write("a\r\nb\n")
    assert (root / "a.csv").read_bytes() == b"a\r\nb\n"
    assert [path.name for path in storage.files_under(root)][:2] == ["a.csv", "a.npz"]


def test_copies_and_outputs_on_this_machine(root):
    with storage.local_output(root / "sheet") as folder:
        folder.mkdir()
        (folder / "in").mkdir()
        (folder / "in" / "x").write_text("x")
        (folder / "y").write_text("y")
    with storage.local_output(root / "one.txt") as file:
        file.write_text("1")
    assert (root / "sheet" / "in" / "x").read_text() == "x"
    with storage.local_copy(root) as copy:
        inside = [path.relative_to(copy) for path in copy.rglob("*") if path.is_file()]
        assert sorted(map(str, inside)) == ["one.txt", "sheet/in/x", "sheet/y"]
        assert os.path.basename(copy) == "run"
    with storage.local_copy(root / "one.txt") as copy:
        assert copy.read_text() == "1" and copy.name == "one.txt"


def test_an_object_that_stands_for_a_folder_is_not_listed_in_it(gcs, bucket):
    gcs.put(bucket, "run/", b"")
    gcs.put(bucket, "run/a", b"")
    assert [path.name for path in storage.path(f"gs://{bucket}/run").iterdir()] == ["a"]
    assert [path.name for path in storage.files_under(storage.path(f"gs://{bucket}/run"))] == ["a"]


def test_records_are_appended(root):
    root.mkdir(parents=True)
    file = storage.Appender(root / "metrics.jsonl")
    file.write(b"one\n")
    file.sync()
    assert (root / "metrics.jsonl").read_bytes() == b"one\n"
    file.write(b"two\n")
    file.close()
    again = storage.Appender(root / "metrics.jsonl")
    again.write(b"three\n")
    again.close()
    again.close() if storage.is_remote(root) else None
    assert (root / "metrics.jsonl").read_bytes() == b"one\ntwo\nthree\n"


def test_appended_records_reach_a_bucket_after_a_while(gcs, bucket):
    now = 0.0
    path = storage.path(f"gs://{bucket}/metrics.jsonl")
    file = storage.Appender(path, clock=lambda: now)
    file.write(b"one\n")
    assert not path.exists()
    now = append.UPLOAD_EVERY_S
    file.write(b"two\n")
    file._collect()
    assert path.read_bytes() == b"one\ntwo\n"
    gcs.forbidden.add(bucket)
    file.write(b"three\n")
    with pytest.raises(PermissionError):
        file.sync()
    gcs.forbidden.clear()
    file.sync()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    file.close()


def test_refusals_are_the_errors_of_local_files_and_come_at_once(gcs, bucket):
    missing = storage.path("gs://no-such-bucket/x")
    begun = len(gcs.requests)
    assert not missing.exists()
    for use in (missing.read_bytes, missing.stat, lambda: storage.write(missing, b"")):
        with pytest.raises(FileNotFoundError):
            use()
    gcs.forbidden.add("forbidden")
    forbidden = storage.path("gs://forbidden/x")
    # Not told apart from an empty folder, it would let a run start over.
    for use in (forbidden.exists, forbidden.is_dir, forbidden.read_bytes, forbidden.stat):
        with pytest.raises(PermissionError, match="storage.objects"):
            use()
    with pytest.raises(PermissionError):
        list(forbidden.iterdir())
    with pytest.raises(PermissionError):
        storage.write(forbidden, b"")
    assert len(gcs.requests) - begun < 30


def test_a_store_that_does_not_answer_is_asked_again(gcs, bucket, caplog):
    path = storage.path(f"gs://{bucket}/a")
    with gcs.outage(2):
        storage.write(path, b"1")
        assert path.read_bytes() == b"1"
    assert "asking again" in caplog.text and "503" in caplog.text


def test_patience_ends(gcs, bucket, monkeypatch):
    monkeypatch.setattr(stores, "PATIENCE_S", 0.5)
    path = storage.path(f"gs://{bucket}/a")
    with gcs.outage(1.5), pytest.raises(OSError, match="503"):
        path.exists()
