"""Weights by the names of the Hugging Face hub, from a stand-in for it."""

import json
import re

import fake_hub
import jax
import numpy as np
import pytest
import tiny_runs
from pretrained.convert_test import make_source, run

from deit_jax import pretrained
from deit_jax.errors import ConfigError
from deit_jax.evaluation import publish
from deit_jax.pretrained import hf_hub
from deit_jax.pretrained.formats.safetensors_file import read_safetensors
from deit_jax.train import experiment

NAME = "hf-hub:me/pets"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server with the model `me/pets`, and an empty cache."""
    loaded = pretrained.load_checkpoint(make_source(tmp_path, "distilled"))
    publish.publish(loaded, tmp_path / "folder")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DEIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with fake_hub.serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.add("me/pets", tmp_path / "folder")
        server.folder = tmp_path / "folder"
        yield server


def refusal(name=NAME):
    with pytest.raises(ConfigError) as error:
        pretrained.load_checkpoint(name)
    message = str(error.value)
    assert message.startswith(name) and "\n" not in message
    return message


@pytest.mark.parametrize("name", [NAME, "hf_hub:me/pets", "hf-hub:me/pets@v1.0"])
def test_a_repository_is_read_as_its_folder_and_fetched_once(hub, tmp_path, name):
    loaded, expected = pretrained.load_checkpoint(name), pretrained.load_checkpoint(hub.folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected.variables)
    assert loaded.create_model() == expected.create_model()
    assert (loaded.class_names, loaded.source) == (("cat", "dog", "emu"), name)
    first, rest = hub.requests[0][0], [path for path, _ in hub.requests[1:]]
    assert first == f"/me/pets/resolve/{'v1.0' if '@' in name else 'main'}/config.json"
    # All of one commit, even if another is pushed meanwhile.
    assert all(fake_hub.COMMIT in path or path.startswith("/cdn/") for path in rest)
    asked = len(hub.requests)
    assert pretrained.describe(name).num_classes == 3
    assert len(hub.requests) == asked
    assert not list((tmp_path / "cache" / "hub").glob("*.partial"))


def test_a_file_of_timm_without_notes_of_ours(hub, tmp_path):
    """As timm's own repositories: weights and timm's config.json alone."""
    from safetensors.numpy import save

    tensors, _ = read_safetensors(hub.folder / "model.safetensors")
    hub.files = {
        "timm/deit_tiny.mine": b"",
        "timm/deit_tiny.mine/model.safetensors": save(tensors),
        "timm/deit_tiny.mine/config.json": (hub.folder / "config.json").read_bytes(),
    }
    loaded = pretrained.load_checkpoint("timm/deit_tiny.mine")
    expected = pretrained.load_checkpoint(hub.folder)
    assert loaded.create_model() == expected.create_model()
    assert loaded.class_names == expected.class_names and loaded.format == "timm"
    assert loaded.image["crop_ratio"] == 0.8 and loaded.mean == expected.mean
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, expected.variables)


def test_the_token_opens_gated_repositories_and_goes_to_the_hub_alone(hub, monkeypatch, tmp_path):
    hub.gated.add("me/pets")
    assert re.search(r"accept the conditions at http\S+/me/pets, and set HF_TOKEN", refusal())
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "access is restricted" in refusal()
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_right\n")
    hub.requests.clear()
    assert pretrained.load_checkpoint(NAME).num_classes == 3
    tokens = {path.split("/")[1]: token for path, token in hub.requests}
    assert tokens == {"me": "hf_right", "cdn": ""}


def test_what_the_hub_does_not_have_is_one_line(hub):
    assert "no such repository at http" in refusal("hf-hub:me/cats")
    message = refusal("timm/deit_tiny_patch16_224")
    assert "known: deit_tiny_patch16_224.fb_in1k" in message
    assert "no revision 'v9'" in refusal("hf-hub:me/pets@v9")
    assert "is not hf-hub:OWNER/NAME" in str(refusal_of_form("hf-hub:pets"))
    assert "is not hf-hub:OWNER/NAME" in str(refusal_of_form("hf-hub:me/../../x"))
    del hub.files["me/pets/model.safetensors"]
    assert "neither model.safetensors nor pytorch_model.bin" in refusal()
    with pytest.raises(FileNotFoundError, match="hf-hub:OWNER/NAME"):
        pretrained.load_checkpoint("timm/folder/weights.pth")


def refusal_of_form(name):
    with pytest.raises(ConfigError) as error:
        pretrained.load_checkpoint(name)
    return error.value


def test_a_cut_or_changed_download_leaves_nothing_behind(hub, tmp_path):
    key = "me/pets/model.safetensors"
    hub.cut.add(key)
    half, whole = len(hub.files[key]) // 2, len(hub.files[key])
    assert f"model.safetensors was cut after {half:,} of {whole:,} bytes" in refusal()
    hub.cut.clear()
    right = hub.files[key]
    hub.files[key] = right[:-1] + bytes([right[-1] ^ 1])
    # The hub's digest is that of the right file.
    digest = fake_hub.hashlib.sha256
    fake_hub.hashlib.sha256 = lambda content: digest(right)
    try:
        assert "model.safetensors was damaged on the way" in refusal()
    finally:
        fake_hub.hashlib.sha256 = digest
    assert not list((tmp_path / "cache").rglob("*.*"))
    hub.files[key] = right
    assert pretrained.load_checkpoint(NAME).num_classes == 3


def test_offline(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "$HF_HUB_OFFLINE forbids" in refusal()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot download from http://127.0.0.1:9 (" in refusal()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert pretrained.load_checkpoint(NAME).num_classes == 3
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert pretrained.load_checkpoint(NAME).num_classes == 3


def test_a_local_folder_of_that_name_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish.publish(pretrained.load_checkpoint(hub.folder), tmp_path / "timm" / "mine")
    hub.requests.clear()
    assert pretrained.load_checkpoint("timm/mine").source == "timm/mine"
    assert not hub.requests


def test_commands_and_runs_take_the_names(hub, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    code, out, _ = run(capsys, "convert", NAME, target)
    assert code == 0 and f"read {NAME}" in out and target.is_file()
    code, _, error = run(capsys, "convert", "hf-hub:me/cats", tmp_path / "x.safetensors")
    assert code == 2 and error.count("\n") == 1
    assert json.loads(hub.files["me/pets/config.json"])["label_names"] == ["cat", "dog", "emu"]


def test_a_run_starts_from_a_name_and_has_a_teacher_by_a_name(hub, tmp_path, monkeypatch):
    tiny_runs.on_one_device(monkeypatch)
    ten = [str(number) for number in range(10)]
    publish.publish(pretrained.load_checkpoint(make_source(tmp_path, "plain", ten)), tmp_path / "t")
    hub.add("me/ten", tmp_path / "t")
    small = {"image_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    config = tiny_runs.tiny(
        "quickstart.py:student",
        *(f"model.{key}={value}" for key, value in small.items()),
        *("init=hf-hub:me/ten", "teacher.init=hf-hub:me/ten", "teacher.name="),
    )
    built = experiment.build(config)
    assert "from hf-hub:me/ten" in str(built.start.report)
    assert "hf-hub:me/ten" in built.teacher.description


def test_names():
    assert hf_hub.parse("hf-hub:a/b@refs/pr/1") == ("a/b", "refs/pr/1")
    assert hf_hub.parse("timm/x.fb_in1k") == ("timm/x.fb_in1k", "main")
    names = ("hf-hub:a/b", "hf_hub:a", "timm/x", "timm/x/y", "other/x", "x.pth", "gs://hf-hub:a/b")
    assert [hf_hub.is_name(name) for name in names] == [True, True, True, *[False] * 4]
