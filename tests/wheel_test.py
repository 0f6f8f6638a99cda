"""What `pip install deit_jax` installs: the library and its recipes; it trains anywhere."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

from deit_jax import config_file

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy: building leaves files behind."""
    source = tmp_path_factory.mktemp("source")
    out = source / "dist"
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("deit_jax", "configs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out]
    subprocess.run([sys.executable, "-m", *build, source], check=True, cwd=source)
    return next(out.iterdir())


def test_the_wheel_has_the_library_and_its_recipes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        content = {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        requirements = archive.read(metadata).decode()
    expected = {
        str(path.relative_to(ROOT)): path
        for path in (ROOT / "deit_jax").rglob("*")
        if path.suffix in (".py", ".txt")
    }
    expected |= {
        f"deit_jax/shipped/configs/{path.name}": path for path in (ROOT / "configs").glob("*.py")
    }
    assert content == {name: path.read_bytes() for name, path in expected.items()}
    required = [line for line in requirements.splitlines() if line.startswith("Requires-Dist")]
    always = " ".join(line for line in required if "extra ==" not in line)
    assert "jax>=" in always and "tensorflow" not in always


def test_recipes_have_names():
    assert "finetune" in config_file.recipes() and "common" not in config_file.recipes()
    for name in config_file.recipes():
        config, file = config_file.read(name)
        assert file == ROOT / "configs" / f"{name}.py" and config.model.name


MINE = """
from configs import common, quickstart
from deit_jax import losses

def halved(logits, target):
    \"\"\"Half of the cross-entropy.\"\"\"
    return losses.cross_entropy(logits, target) / 2

losses.LABEL_LOSSES["halved"] = halved

def get_config():
    config = common.tiny(quickstart.get_config("plain"))
    return common.merged(config, {"loss": {"base": "halved"}})
"""


@pytest.mark.long
@pytest.mark.versions
def test_it_trains_in_an_empty_folder(wheel, tmp_path):
    """A shipped recipe by name and a file of one's own, where TensorFlow cannot be imported."""
    site, here = tmp_path / "site", tmp_path / "empty"
    here.mkdir()
    install = ["pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run([sys.executable, "-m", *install], check=True)
    (site / "tensorflow.py").write_text("raise ImportError('not here')")
    environment = os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}

    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, site / "bin" / "deit-jax", *arguments]
        return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)

    (here / "mine.py").write_text(MINE)
    for name, spec in {"shipped": "finetune:s,tiny", "mine": "./mine.py"}.items():
        trained = run(
            "train", f"--config={spec}", f"--workdir={name}", "--config.data.source=digits"
        )
        assert trained.returncode == 0, trained.stderr
        assert "step 3/3" in trained.stdout and (here / name / "checkpoints" / "3").is_dir()
    assert "halved: Half of the cross-entropy" in trained.stdout
    evaluated = run("evaluate", "--checkpoint=mine", "--config=mine.py")
    assert evaluated.returncode == 0 and "digits: 1442 train, 355 test" in evaluated.stdout, (
        evaluated.stderr
    )
    refused = run("train", "--config=finetun:s", "--workdir=x")
    assert refused.returncode == 2
    # After the line that says how many processes there are.
    assert refused.stderr.splitlines()[-1].startswith("error: no recipe 'finetun'; known: finetune")
    assert len(refused.stderr.splitlines()) == 2
