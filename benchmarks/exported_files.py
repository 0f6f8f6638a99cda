"""Files of `deit-jax export` and `publish` in other programs, on photos of ImageNet.

    python benchmarks/exported_files.py --data_dir=DIR --onnx_python=PY --reference_python=PY

DIR has imagenet2012 as tfds prepared it. The first PY is a Python with onnxruntime, the second one
with torch and timm, and transformers where hf folders are compared. Each model has random weights
of a trained model's size. Its file or folder is opened there without this library and gets the
same prepared photos; the largest difference of the logits over the largest logit of this library
is printed and written. Fails above 1e-4.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np

from deit_jax import data, models, pretrained
from deit_jax.evaluation import export, publish
from deit_jax.evaluation.evaluate import Evaluation
from deit_jax.pretrained.formats import names
from deit_jax.pretrained.formats.safetensors_file import write_safetensors

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "reference"))
from random_weights import random_state

MODELS = (
    *("deit_tiny_patch16_224", "deit_small_distilled_patch16_224", "deit3_small_patch16_224"),
    *("regnety_016", "regnety_040_sgn"),
)
TOLERANCE = 1e-4
ONNX = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
image = numpy.load(sys.argv[2]).transpose(0, 3, 1, 2)
names = [output.name for output in session.get_outputs()]
parts = [session.run(names, {"image": part}) for part in (image[:7], image[7:])]
numpy.savez(sys.argv[3], **dict(zip(names, map(numpy.concatenate, zip(*parts)))))
print("onnxruntime", onnxruntime.__version__)
"""
JAX = """
import sys, jax.export, numpy
model = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
image = numpy.load(sys.argv[2])
parts = [model.call(part) for part in (image[:7], image[7:])]
numpy.savez(sys.argv[3], **{k: numpy.concatenate([p[k] for p in parts]) for k in parts[0]})
assert "deit_jax" not in sys.modules
print("jax", jax.__version__)
"""
# torchvision without its compiled operators still imports once these are declared.
TORCH = """
import sys, numpy, torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
image = torch.from_numpy(numpy.load(sys.argv[2]).transpose(0, 3, 1, 2).copy())
"""
TIMM = """
import timm
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
cfg = model.pretrained_cfg
assert len(cfg["label_names"]) == 1000 and cfg["crop_pct"] == 0.9 and cfg["mean"][0] == 0.5, cfg
model.distilled_training = hasattr(model, "head_dist")
with torch.inference_mode():
    found = model(image)
    if hasattr(model, "head_dist"):
        x = model.forward_features(image)
        found = {"logits": model.head(x[:, 0]), "dist_logits": model.head_dist(x[:, 1])}
    else:
        found = {"logits": found}
numpy.savez(sys.argv[3], **{name: value.numpy() for name, value in found.items()})
print("timm", timm.__version__)
"""
HF = """
import transformers
model = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
assert len(model.config.id2label) == 1000
transformers.AutoImageProcessor.from_pretrained(sys.argv[1])
with torch.inference_mode():
    found = model(image)
heads = {"logits": found.get("cls_logits", found.logits)}
heads |= {"dist_logits": found.distillation_logits} if "cls_logits" in found else {}
numpy.savez(sys.argv[3], **{name: value.numpy() for name, value in heads.items()})
print("transformers", transformers.__version__)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--onnx_python", required=True)
    parser.add_argument("--reference_python", required=True)
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--models", default=",".join(MODELS))
    output = ROOT / "benchmarks" / "results" / "exported_files.json"
    parser.add_argument("--output", type=pathlib.Path, default=output)
    args = parser.parse_args()
    targets = {
        "model.jax": (sys.executable, JAX),
        "model.onnx": (args.onnx_python, ONNX),
        "timm": (args.reference_python, TORCH + TIMM),
        "hf": (args.reference_python, TORCH + HF),
    }
    rows = []
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += compare(name, pathlib.Path(folder), targets, args)
    worst = max(row["worst"] for row in rows)
    args.output.write_text(json.dumps({"photos": args.photos, "rows": rows}, indent=1) + "\n")
    print(f"{len(rows)} comparisons, worst {worst:.1e}, tolerance {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


def compare(name: str, folder: pathlib.Path, targets: dict, args: argparse.Namespace) -> list[dict]:
    """One model in every form that can express it."""
    loaded = random_checkpoint(name, folder)
    image = photos(loaded, args.data_dir, args.photos)
    np.save(folder / "image.npy", image)
    model = loaded.create_model()
    forward = jax.jit(lambda image: models.apply(model, loaded.variables, image))
    expected = forward(image)._asdict()
    rows = []
    for target, (python, code) in targets.items():
        if target == "hf" and name.startswith(("deit3", "regnety_040_sgn")):
            continue  # transformers has no such class
        path = folder / target
        if path.suffix:
            export.export(loaded, path)
        else:
            publish.publish(loaded, path, to=target)
        command = [python, "-c", code, *map(str, (path, folder / "image.npy", folder / "out.npz"))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        with np.load(folder / "out.npz") as file:
            found = dict(file)
        heads = [head for head in ("logits", "dist_logits") if expected[head] is not None]
        differences = [
            np.abs(found[head] - expected[head]).max() / np.abs(expected[head]).max()
            for head in heads
        ]
        reader = done.stdout.strip().split("\n")[-1]
        rows.append({"model": name, "as": target, "reader": reader, "heads": len(heads)})
        rows[-1]["worst"] = float(max(differences))
        print(f"{name:34} {target:11} {reader:20} {rows[-1]['worst']:.1e}", flush=True)
    return rows


def random_checkpoint(name: str, folder: pathlib.Path) -> pretrained.LoadedCheckpoint:
    model = models.create_model(name)
    table = names.entries(model, "timm")
    state = random_state({e.names[0]: e.part_shape for e in table})
    notes = {
        "model": {"name": name},
        "class_names": [f"kind {number}" for number in range(model.num_classes)],
        "image": {"crop_ratio": 0.9, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.25)},
    }
    write_safetensors(folder / "weights.safetensors", state, notes)
    return pretrained.load_checkpoint(folder / "weights.safetensors")


def photos(loaded: pretrained.LoadedCheckpoint, data_dir: str, count: int) -> np.ndarray:
    """The first `count` of ImageNet's validation photos, prepared, f32 [count, H, W, 3]."""
    split = {"train_split": "validation", "eval_split": "validation"}
    source = data.open_data(source="tfds", name="imagenet2012", data_dir=data_dir, **split).eval
    side = loaded.image["size"][0]
    evaluation = Evaluation(side, batch_size=count, crop_ratio=loaded.image["crop_ratio"])
    with evaluation.batches(source, {}) as batches:
        batch = next(iter(batches))
    image = evaluation.make_transform(loaded.mean, loaded.std)(batch)
    return np.asarray(image, np.float32)


if __name__ == "__main__":
    sys.exit(main())
