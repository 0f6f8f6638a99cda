"""The commands on runs, weights, images and results in a bucket."""

import io
import json

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy
import tiny_runs

from deit_jax import storage
from deit_jax.cli import main
from deit_jax.pretrained import load_checkpoint

PLAIN = tiny_runs.ROOT / "configs" / "quickstart.py:plain"


@pytest.fixture
def run(gcs, bucket, tiny_teacher):
    """URL of a copy of the tiny teacher's workdir."""
    for name in storage.names_under(tiny_teacher):
        gcs.put(bucket, f"run/{name}", (tiny_teacher / name).read_bytes())
    return f"gs://{bucket}/run"


def test_weights_are_converted_from_and_to_a_bucket(run, bucket, tiny_teacher, tmp_path, capsys):
    there = storage.path(f"gs://{bucket}/out/weights.safetensors")
    assert main(["convert", run, str(there)]) == 0
    assert main(["convert", str(tiny_teacher), str(tmp_path / "weights.safetensors")]) == 0
    ours, local = (
        safetensors.numpy.load(file.read_bytes())
        for file in (there, tmp_path / "weights.safetensors")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, local)
    assert main(["convert", str(there), f"gs://{bucket}/ours"]) == 0
    kernels = [
        load_checkpoint(path).variables["params"]["head"]["kernel"]
        for path in (run, there, f"gs://{bucket}/ours", tiny_teacher)
    ]
    for kernel in kernels[:-1]:
        np.testing.assert_array_equal(kernel, kernels[-1])
    capsys.readouterr()
    assert main(["convert", run, str(there)]) == 2
    assert main(["convert", f"gs://{bucket}/nothing", str(there) + "2"]) == 2
    refused = capsys.readouterr().err.splitlines()
    assert f"{there} exists" in refused[0] and len(refused) == 2
    assert f"gs://{bucket}/nothing: no such file or folder" in refused[1]


def test_runs_are_compared_and_drawn(run, bucket, tiny_teacher, capsys):
    png = storage.path(f"gs://{bucket}/curves.png")
    assert main(["compare", f"a={run}", f"b={tiny_teacher}", f"--png={png}"]) == 0
    assert f"TensorBoard of a: {run}/tensorboard" in capsys.readouterr().out
    assert png.read_bytes().startswith(b"\x89PNG")


def test_images_are_classified_and_results_written(gcs, run, bucket, capsys):
    content = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (90, 90, 90)).save(content, "PNG")
    gcs.put(bucket, "photo.png", content.getvalue())
    photo = f"gs://{bucket}/photo.png"
    assert main(["predict", f"--checkpoint={run}", photo]) == 0
    assert photo in capsys.readouterr().out
    assert main(["predict", f"--checkpoint={run}", f"gs://{bucket}/no.png"]) == 2
    results = storage.path(f"gs://{bucket}/out/results.json")
    table = storage.path(f"gs://{bucket}/out/classes.csv")
    command = ["evaluate", f"--checkpoint={run}", f"--json={results}", f"--per-class={table}"]
    assert main([*command, f"--figures=gs://{bucket}/figures"]) == 0
    for name in ("confusion", "worst"):
        assert storage.path(f"gs://{bucket}/figures/{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads(results.read_text())["results"]["val"]
    assert table.read_text().startswith("class,name,images")


def test_a_config_in_a_bucket_is_refused_in_one_line(capsys):
    assert main(["explain", "--config=gs://bucket/mine.py"]) == 2
    assert "must be on this machine" in capsys.readouterr().err


def test_a_bucket_that_is_not_ours_is_one_line(gcs, tmp_path, capsys, tiny_teacher):
    gcs.forbidden.add("forbidden")
    there = "gs://forbidden/run"
    for command in (
        ["convert", there, str(tmp_path / "weights.safetensors")],
        ["convert", str(tiny_teacher), f"{there}.safetensors"],
        ["predict", f"--checkpoint={there}", str(tmp_path)],
        ["predict", f"--checkpoint={tiny_teacher}", f"{there}/photo.png"],
        ["compare", there],
        ["evaluate", f"--checkpoint={tiny_teacher}", f"--json={there}.json"],
        ["augmentations", f"--config={PLAIN}", f"--output={there}.png"],
        ["replay", f"--dump={there}"],
        ["data", "--source=arrays", f"--path={there}.npz"],
        ["data", "--source=folder", f"--path={there}"],
        ["data", "--name=imagenet2012", f"--data_dir={there}"],
    ):
        assert main(command) == 2, command
        said = capsys.readouterr().err
        # The photo's folder, which is no file, is looked at first.
        assert said.count("\n") == 1, said
        assert "permission denied" in said or str(tmp_path) in said
