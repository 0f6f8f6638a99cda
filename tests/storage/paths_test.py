"""What a user may name as a path, and that a URL never becomes a local folder."""

import pathlib
import sys

import pytest

from deit_jax import storage
from deit_jax.errors import ConfigError
from deit_jax.storage import stores


def test_a_local_path_is_pathlibs(tmp_path):
    for value in (tmp_path, str(tmp_path), f"file://{tmp_path}"):
        assert storage.path(value) == tmp_path
        assert isinstance(storage.path(value), pathlib.Path)
        assert not storage.is_remote(value)


def test_a_url_is_no_path_of_the_system(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = storage.path(f"gs://{bucket}/run")
    for use in (pathlib.Path, open):
        with pytest.raises(TypeError):
            use(found)
    with pytest.raises(ConfigError, match="--workdir must be on this machine, not gs://"):
        storage.local_path(found, "--workdir")
    assert not list(tmp_path.iterdir())


def test_parts_of_a_url(bucket):
    root = storage.path(f"gs://{bucket}")
    file = storage.path(f"GS://{bucket}//run/./metrics.jsonl/")
    assert str(file) == f"gs://{bucket}/run/metrics.jsonl"
    assert str(storage.path(f"gcs://{bucket}/a")) == f"gs://{bucket}/a"
    assert (file.name, file.stem, file.suffix) == ("metrics.jsonl", "metrics", ".jsonl")
    assert file.parent == root / "run" and file.parent.parent.parent == root
    assert file.with_suffix(".png") == file.with_name("metrics.png")
    assert storage.path(file) is file
    assert len({file, root / "run" / "metrics.jsonl"}) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("zz://bucket/x", ["zz://", "not supported", "gs://", "s3://"]),
        ("s3://bucket/x", ["s3fs", "gs://"]),
        ("ftp://host/x", ["ftp://", "not supported", "gs://"]),
        ("github://name/x", ["github://", "not supported", "gs://"]),
        ("zip://x", ["zip://", "not supported", "gs://"]),
        ("gs:///x", ["gs://bucket/folder"]),
        ("gs://", ["gs://bucket/folder"]),
        ("gs:/bucket/x", ["lacks a slash", "gs://bucket/x"]),
        (pathlib.Path("gs://bucket/x"), ["lacks a slash", "gs://bucket/x"]),
    ],
)
def test_other_urls_are_refused_in_one_line(value, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    stores.filesystem.cache_clear()
    with pytest.raises(ConfigError) as error:
        storage.path(value)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    stores.filesystem.cache_clear()
    with pytest.raises(ConfigError, match=r"gs:// needs gcsfs .*: pip install 'deit_jax\[gcs\]'"):
        storage.path("gs://bucket/x")
