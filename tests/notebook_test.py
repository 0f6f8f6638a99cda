"""The notebook for one's own photos: its pair, its cells, and the whole of it on the sample set."""

import ast
import base64
import os
import pathlib
import re
import resource

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAIR, NOTEBOOK = ROOT / "notebooks" / "finetune.py", ROOT / "notebooks" / "finetune.ipynb"
DURATION = re.compile(r"\b\d+(?:[.,]\d+)?\s*(?:s|sec\w*|min\w*|h|hours?)\b")


@pytest.fixture(scope="module")
def notebook():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_pair_agrees(notebook):
    import jupytext

    cells = lambda found: [(cell.cell_type, cell.source) for cell in found.cells]
    assert cells(jupytext.read(PAIR)) == cells(notebook), (
        "after a change: jupytext --update --to ipynb notebooks/finetune.py"
    )
    assert notebook.metadata.kernelspec.name == "python3"


def test_it_is_stored_without_outputs(notebook):
    assert not any(cell.get("outputs") for cell in notebook.cells)
    assert NOTEBOOK.stat().st_size < 50_000


def test_every_cell_compiles_and_has_its_text(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown" and ("code", "code") not in set(
        zip(kinds, kinds[1:], strict=False)
    )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
        else:
            assert cell.source.strip()


def test_commands_and_options_exist(notebook):
    """Every command, and every config of both kinds of data, as far as it is known without them."""
    from deit_jax import cli
    from deit_jax.train import schema

    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    used = set(re.findall(r'deit_jax\(\s*"(\w+)"', source))
    known = {command.__name__.rsplit(".", 1)[-1] for command in cli.COMMANDS}
    assert used <= known and {"explain", "train", "attention", "export"} <= used
    (settings,) = [cell.source for cell in notebook.cells if cell.source.startswith("DATA = ")]
    for origin in ("sample", "photos.zip"):
        scope = {"PHOTOS": "photos.zip", "PHOTOS_FROM": origin}
        exec(settings, scope)
        for run in ("MODEL", "TEACHER", "DISTILLED"):
            spec, *options = [*scope[run], *scope["DATA"]]
            overrides = [option.removeprefix("--config.") for option in options]
            config = schema.load(spec.removeprefix("--config="), overrides)
            assert config.data.path == "photos.zip" and config.log.trackers == ("notebook",)


def test_no_duration_without_hardware_and_date(notebook):
    for cell in notebook.cells:
        for sentence in re.split(r"(?<=[.!?:])\s", cell.source):
            if cell.cell_type == "markdown" and DURATION.search(sentence):
                assert re.search(r"20\d\d", sentence) and re.search(r"T4|v5e|CPU", sentence)


@pytest.mark.long
@pytest.mark.versions
def test_it_runs_on_the_sample(notebook, tmp_path, monkeypatch):
    """As in Colab, from the first cell to the last: figures, no errors, an exported file."""
    import nbclient

    environment = {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "DEIT_JAX_ACCELERATOR": "cpu",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PJRT_NPROC")
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    outputs = [(cell, out) for cell in notebook.cells for out in cell.get("outputs", ())]
    assert not [out for _, out in outputs if out.output_type == "error"]
    pictures = [(c, o.data["image/png"]) for c, o in outputs if "image/png" in o.get("data", ())]
    assert len(pictures) >= 8
    if keep := os.environ.get("DEIT_JAX_NOTEBOOK_FIGURES"):
        for number, (_, png) in enumerate(pictures):
            pathlib.Path(keep, f"{number:02d}.png").write_bytes(base64.b64decode(png))
    said = {
        cell.source: "".join(out.get("text", "") for c, out in outputs if c is cell)
        for cell in notebook.cells
    }
    trained = [(source, text) for source, text in said.items() if "first step finished" in text]
    assert len(trained) == 4
    for source, text in trained:
        assert "\r" in text and "100%|" in text, "a line that is written anew"
        assert len([c for c, _ in pictures if c.source == source]) == 1, "curves in one place"
    assert "resuming after step" in trained[-1][1]
    (difference,) = [t for t in said.values() if "largest difference of a logit" in t]
    assert float(difference.split(":")[1]) < 1e-4
    assert (tmp_path / "model.jax").stat().st_size > 10_000 and (
        tmp_path / "model.jax.json"
    ).exists()
    # Three minutes of two cores; the time on the wall depends on what else runs.
    assert usage.ru_utime + usage.ru_stime < 360
