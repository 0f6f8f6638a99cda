"""Versions and git state, with git and without."""

import json
import subprocess

from deit_jax.tracking import provenance


def git(folder, *args):
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *args],
        check=True,
        capture_output=True,
    )


def test_versions_are_json():
    found = json.loads(json.dumps(provenance.collect()))
    assert found["packages"]["jax"] and found["python"] and found["deit_jax"]


def test_commit_and_dirty_flag_of_its_own_tree_only(tmp_path):
    assert provenance.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = provenance.git_state(tmp_path)
    assert len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "file").write_text("two")
    assert provenance.git_state(tmp_path) == clean | {"dirty": True}
    inside = tmp_path / "lib" / "site-packages"
    inside.mkdir(parents=True)
    assert provenance.git_state(inside) is None


def test_without_git(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(tmp_path) is None
