"""`deit-jax evaluate`, its sets and what is computed from the predictions."""

import csv
import json
import re

import jax
import numpy as np
import pytest
import tiny_runs

from deit_jax import augment, cli, data, models, pretrained
from deit_jax.evaluation import evaluate
from deit_jax.pretrained.convert import save_timm

NAME = "deit_tiny_distilled_patch16_224"
TINY = {"image_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}


def save_checkpoint(path, num_classes=1000):
    """A random tiny model with two heads, as a .safetensors file with timm's names."""
    model = models.create_model(NAME, num_classes=num_classes, **TINY)
    loaded = pretrained.LoadedCheckpoint(
        variables=jax.device_get(models.init_variables(model, jax.random.key(0))),
        model=NAME,
        model_kwargs=TINY | {"num_classes": num_classes},
        class_names=None,
        source="memory",
        format="timm",
        image={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "crop_ratio": 0.875},
        metadata={},
    )
    save_timm(loaded, path)
    return str(path), loaded


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def imagenet_sets(tfds_dir, tmp_path_factory):
    """ReaL and V2 as tfds prepares them, of twelve validation photos; two of ReaL without label."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    (folder / "imagenet2012").symlink_to(tfds_dir / "imagenet2012")
    photos = data.open_data(name="imagenet2012", data_dir=str(tfds_dir))
    images, labels = photos.eval.get(np.arange(12))
    label = tfds.features.ClassLabel(num_classes=1000)
    image = tfds.features.Image(encoding_format="jpeg")
    real = [[], [3, 999], *([int(x)] for x in labels[2:11]), []]
    for name, config, split, features, examples in (
        (
            "imagenet2012_real",
            None,
            "validation",
            {"image": image, "original_label": label, "real_label": tfds.features.Sequence(label)},
            [
                {"image": i, "original_label": y, "real_label": r}
                for i, y, r in zip(images, labels, real, strict=True)
            ],
        ),
        (
            "imagenet_v2",
            "matched-frequency",
            "test",
            {"image": image, "label": label},
            [{"image": i, "label": y} for i, y in zip(images, labels, strict=True)],
        ),
    ):
        features = tfds.features.FeaturesDict(features)
        serialize = features.serialize_example
        target = folder / name / (config or "") / "1.0.0"
        target.mkdir(parents=True)
        file = f"{name}-{split}.tfrecord-00000-of-00001"
        import tensorflow as tf

        with tf.io.TFRecordWriter(str(target / file)) as writer:
            for example in examples:
                writer.write(serialize(features.encode_example(example)))
        tfds.folder_dataset.write_metadata(
            data_dir=str(target),
            features=features,
            split_infos=[
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(examples)],
                    num_bytes=0,
                    filename_template=tfds.core.ShardedFileTemplate(
                        dataset_name=name,
                        split=split,
                        filetype_suffix="tfrecord",
                        data_dir=str(target),
                    ),
                )
            ],
        )
    return folder, real


def run(capsys, *arguments):
    status = cli.main(["evaluate", *arguments])
    return status, capsys.readouterr()


def test_published_kind_of_checkpoint_needs_no_config(checkpoint, imagenet_sets, tmp_path, capsys):
    path, loaded = checkpoint
    folder, real = imagenet_sets
    files = {name: tmp_path / f"{name}" for name in ("json", "confusion", "per-class")}
    status, output = run(
        capsys,
        f"--checkpoint={path}",
        f"--config.data.data_dir={folder}",
        "--data=val,v2",
        "--data=real",
        "--config.eval.batch_size=32",
        *(f"--{name}={file}" for name, file in files.items()),
    )
    assert status == 0, output.err
    report = json.loads(files["json"].read_text())
    assert report["model"] == NAME and report["crop_ratio"] == 0.875
    counts = {name: scores["raw"]["count"] for name, scores in report["results"].items()}
    assert counts == {"val": 100, "v2": 12, "real": 10}
    for head in ("class head", "distillation head", "mean of logits", "sum of softmaxes"):
        scores = [line for line in output.out.splitlines() if re.match(r"(val|v2|real) ", line)]
        assert sum(head in line for line in scores) == 3
    assert output.out.count("raw: differ, % of images") == 3, "who agrees with whom, for each set"
    check_against_training_evaluation(loaded, folder, report["results"]["val"]["raw"])
    check_csv(files, report["results"]["val"]["raw"])


def check_against_training_evaluation(loaded, folder, scores):
    """The same sums that a run reports, through the other code path."""
    model = loaded.create_model()
    step = evaluate.make_eval_step(
        model=model, transform=augment.make_eval_transform(image_size=32, crop_ratio=0.875)
    )
    opened = data.open_data(name="imagenet2012", data_dir=str(folder))
    batches = data.eval_batches(opened.eval, batch_size=100, canvas=512, image_size=32)
    sums = evaluate.evaluate(jax.jit(step), {"raw": loaded.variables}, {}, batches)["raw"]
    for head in ("class", "dist", "mean", "softmax_sum"):
        for key in ("top1", "top5", "loss"):
            assert scores[head][key] == pytest.approx(sums[f"{head}/{key}"], rel=1e-4), (head, key)


def check_csv(files, scores):
    with files["confusion"].open() as file:
        header, *rows = csv.reader(file)
    assert header[1:] == [row[0] for row in rows] and header[1] == "n01440764"
    counts = np.array([row[1:] for row in rows], int)
    assert counts.sum() == 100
    assert np.trace(counts) == pytest.approx(100 * scores["mean"]["top1"])
    with files["per-class"].open() as file:
        header, *rows = csv.reader(file)
    assert header == [
        "class",
        "name",
        "images",
        *(f"{head} top1" for head in ("class", "dist", "mean", "softmax_sum")),
    ]
    assert sum(int(row[2]) for row in rows) == 100


def test_run_of_ours_is_evaluated_on_its_own_data_with_its_ema(tiny_teacher, capsys, tmp_path):
    file = tmp_path / "new" / "results.json"
    status, output = run(capsys, f"--checkpoint={tiny_teacher}", f"--json={file}")
    assert status == 0, output.err
    report = json.loads(file.read_text())["results"]["val"]
    assert set(report) == {"raw", "EMA"} and report["EMA"]["count"] == 355
    from deit_jax.evaluation.results import last_evaluation

    logged = last_evaluation(tiny_teacher)
    for weights, prefix in (("raw", "eval"), ("EMA", "eval_ema")):
        for key in ("top1", "loss"):
            expected = logged[f"{prefix}/class/{key}"]
            assert report[weights]["class"][key] == pytest.approx(expected, rel=1e-4)
    status, output = run(capsys, f"--checkpoint={tiny_teacher}", "--ema")
    assert "EMA" in output.out and "raw" not in output.out


def test_resolution_and_crop_by_option(checkpoint, tfds_dir, capsys, tmp_path):
    path, _ = checkpoint
    file = tmp_path / "results.json"
    status, output = run(
        capsys,
        f"--checkpoint={path}",
        "--image-size=48",
        "--crop-ratio=1",
        f"--config={tiny_runs.ROOT / 'configs/deit.py'}:ti",
        f"--config.data.data_dir={tfds_dir}",
        "--config.data.eval_split=validation[:8]",
        f"--json={file}",
    )
    assert status == 0, output.err
    report = json.loads(file.read_text())
    assert (report["image_size"], report["crop_ratio"]) == (48, 1.0)
    assert report["results"]["val"]["raw"]["count"] == 8


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--data=imagenet"], "known: real, v2, val"),
        (["--data=v2"], "tfds build imagenet_v2/matched-frequency"),
        (["--data=real", "--confusion=x.csv"], "before real"),
        (["--config.data.source=digits"], "trained on 1000 classes, but"),
        (["--config.eval.batch=2"], "did you mean eval.batch_size?"),
        (["--config.eval.crop_ratio=2.0"], "crop_ratio must be from 0.1 to 1, not 2.0"),
        (["--image-size=33"], "not a multiple of patch_size"),
        (["--epochs=3"], "--epochs=3"),
    ],
)
def test_mistakes_are_reported_before_the_work(checkpoint, tfds_dir, capsys, arguments, words):
    path, _ = checkpoint
    given = [] if "source=digits" in arguments[0] else [f"--config.data.data_dir={tfds_dir}"]
    status, output = run(capsys, f"--checkpoint={path}", *given, *arguments)
    assert status == 2 and words in output.err
