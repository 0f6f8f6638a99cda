"""Photos of one's own: the sample, from an address, an upload, a drive, a path."""

import functools
import http.server
import io
import pathlib
import sys
import tarfile
import threading
import types
import zipfile

import pytest

from deit_jax import data
from deit_jax.data import obtain
from deit_jax.errors import ConfigError


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> pathlib.Path:
    return obtain.obtain_photos("sample", tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def tree(tmp_path_factory, sample) -> pathlib.Path:
    """Two photos of two classes."""
    root = tmp_path_factory.mktemp("tree") / "mine"
    for digit in "01":
        (root / digit).mkdir(parents=True)
        for photo in sorted((sample / digit).glob("0*.png"))[:2]:
            (root / digit / photo.name).write_bytes(photo.read_bytes())
    return root


@pytest.fixture
def colab(monkeypatch):
    """Colab's modules; what was called is in the list."""
    module = types.ModuleType("google.colab")
    for name in ("google", "google.colab"):
        monkeypatch.setitem(sys.modules, name, module)
    module.files = types.SimpleNamespace(upload=lambda: {})
    module.drive = types.SimpleNamespace(mount=lambda _: None)
    return module


def test_the_sample_is_digits_with_two_files_that_cannot_be_read(sample):
    opened = data.open_data(source="folder", path=str(sample))
    assert opened.num_classes == 10 and opened.class_names == tuple("0123456789")
    # All that scikit-learn has, less the ten new ones, and the one that is cut.
    assert len(opened.train) + len(opened.eval) == 1797 - 10 + 1
    assert any("1 .heic" in note for note in opened.notes)
    with pytest.raises(data.CorruptImage):
        data.decode_image((sample / "0" / "cut.png").read_bytes())
    new = sorted((sample.parent / "new").iterdir())
    assert [file.name for file in new] == [f"{digit}.png" for digit in range(10)]
    assert data.decode_image(new[3].read_bytes()).shape == (32, 32, 3)
    contents = {file.read_bytes() for file in sample.glob("*/0*.png")}
    assert not contents & {file.read_bytes() for file in new}, "new ones are not trained on"


def test_the_sample_is_written_once(sample):
    before = (sample / "3" / "0003.png").stat().st_mtime_ns
    assert obtain.obtain_photos("sample", sample.parent) == sample
    assert (sample / "3" / "0003.png").stat().st_mtime_ns == before


def test_a_path_is_taken_as_it_is(tree, tmp_path):
    assert obtain.obtain_photos(tree, tmp_path) == tree
    with pytest.raises(ConfigError, match=r"no folder or .zip .*; origins: sample, upload, https"):
        obtain.obtain_photos(tmp_path / "none", tmp_path)


def archive(kind, tree):
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            for photo in tree.rglob("*.png"):
                file.write(photo, photo.relative_to(tree.parent))
    else:
        with tarfile.open(fileobj=content, mode="w:gz") as file:
            file.add(tree, tree.name)
    return content.getvalue()


@pytest.fixture
def server(tmp_path):
    """A folder, and the address under which it is served; only files, and each once."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    make = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


@pytest.mark.parametrize("name, kind", [("p.zip", "zip"), ("download", "zip"), ("p.tgz", "tar")])
def test_an_address_is_downloaded_once(server, tree, tmp_path, name, kind):
    folder, address = server
    (folder / name).write_bytes(archive(kind, tree))
    found = obtain.obtain_photos(f"{address}/{name}?dl=1", tmp_path / "here")
    assert data.open_data(source="folder", path=str(found)).class_names == ("0", "1")
    if name == "p.zip":
        (folder / name).unlink()
        assert obtain.obtain_photos(f"{address}/{name}", tmp_path / "here") == found


def test_what_is_no_archive_or_not_there_is_one_line(server, tmp_path):
    folder, address = server
    (folder / "page.zip").write_text("<!doctype html><title>Sign in</title>")
    with pytest.raises(ConfigError, match="neither a .zip nor a .tar .*begins b'<!doctype html"):
        obtain.obtain_photos(f"{address}/page.zip", tmp_path / "here")
    with pytest.raises(ConfigError, match="cannot download .*/none.zip: HTTP Error 404"):
        obtain.obtain_photos(f"{address}/none.zip", tmp_path / "here")
    assert not list((tmp_path / "here").iterdir()), "nothing half is left"


def test_an_upload(colab, tree, tmp_path):
    with pytest.raises(ConfigError, match="nothing was uploaded"):
        obtain.obtain_photos("upload", tmp_path)
    colab.files.upload = lambda: {"my photos (1).zip": archive("zip", tree)}
    found = obtain.obtain_photos("upload", tmp_path)
    assert data.open_data(source="folder", path=str(found)).num_classes == 2


def test_a_drive_is_mounted_and_copied(colab, tree, tmp_path, monkeypatch):
    drive = tmp_path / "drive"
    monkeypatch.setattr(obtain, "_DRIVE", drive)
    colab.drive.mount = lambda where: (
        (drive / "MyDrive").mkdir(parents=True),
        (drive / "MyDrive" / "mine").symlink_to(tree),
        (drive / "MyDrive" / "mine.zip").write_bytes(archive("zip", tree)),
    )
    for name in ("mine", "mine.zip"):
        found = obtain.obtain_photos(drive / "MyDrive" / name, tmp_path / "here")
        assert found == tmp_path / "here" / name
        assert data.open_data(source="folder", path=str(found)).num_classes == 2
    with pytest.raises(ConfigError, match="no folder or file"):
        obtain.obtain_photos(drive / "MyDrive" / "other", tmp_path / "here")


@pytest.mark.parametrize("origin", ["upload", "/content/drive/MyDrive/photos"])
def test_elsewhere_there_is_neither(origin, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(ConfigError, match="are Colab's; give a path or https://"):
        obtain.obtain_photos(origin, tmp_path)
