"""The card of a published model: what its checkpoint says of the run, and nothing else.

What a checkpoint does not record is left out; no number is computed but shares and epochs.
"""

import json
from collections.abc import Mapping
from typing import Any

from deit_jax import config as config_lib
from deit_jax.errors import printable
from deit_jax.evaluation.classify import readable_names
from deit_jax.evaluation.heads import HEADS
from deit_jax.pretrained import CheckpointInfo, hf_hub

# Where things were on the machine of the run, and how it was watched: nobody else's matter.
_PRIVATE = (
    *("data.data_dir", "data.path", "compilation_cache", "profile"),
    *("teacher.record", "teacher.labels"),
)
_PRIVATE_SECTIONS = ("log", "checkpoint", "mesh", "nonfinite")
# Weights that were started from or taught: the name without the folders of that machine.
_SOURCES = ("init", "teacher.init", "teacher.ensemble")
_SHOWN_CLASSES = 20

_USE = {
    "timm": """\
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
""",
    "hf": """\
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("FOLDER")  # or "OWNER/NAME"
model = AutoModelForImageClassification.from_pretrained("FOLDER").eval()
""",
}
_LIBRARIES = {"timm": "timm", "hf": "transformers"}


def write_card(info: CheckpointInfo, title: str, target: str, weights: str) -> str:
    """Markdown with the header of the hub.

    Args:
      title: name of the folder.
      target: `timm` or `hf`, which library the folder is for.
      weights: `raw` or `EMA`, whose accuracy the card states.
    """
    use = _USE[target].replace("FOLDER", title)
    sections = {
        "Model": _table(model_facts(info)),
        f"Accuracy ({weights} weights)": accuracy(info.metadata, weights),
        "Training": _table(training_facts(info.metadata)),
        "Use": f"```python\n{use}```\n\nIn deit_jax: `--config.init={title}`, or "
        f"`deit-jax predict --checkpoint={title} photo.jpg`.",
        "Recipe": _recipe(info.metadata.get("config", {})),
    }
    header = {"library_name": _LIBRARIES[target], "pipeline_tag": "image-classification"}
    lines = ["---", *(f"{key}: {value}" for key, value in header.items())]
    lines += ["tags:", "- image-classification", "- deit_jax", "---", "", f"# {printable(title)}"]
    body = [f"## {name}\n\n{text}" for name, text in sections.items() if text]
    return "\n\n".join(["\n".join(lines), *body]) + "\n"


def model_facts(info: CheckpointInfo) -> dict[str, str]:
    """Size of the model and preparation of its images."""
    model = info.create_model()
    size, (height, width) = model.count(), model.image_size
    names = readable_names(info)
    facts = {
        "model": info.model,
        "parameters": f"{size.parameters:,}",
        "multiply-accumulates per image": f"{size.macs:,}",
        "image": f"{height} x {width}, crop ratio {info.image['crop_ratio']:g}",
        "mean": ", ".join(f"{value:g}" for value in info.mean),
        "standard deviation": ", ".join(f"{value:g}" for value in info.std),
        "classes": f"{len(names):,}",
    }
    if info.class_names and len(names) <= _SHOWN_CLASSES:
        facts["classes"] += f": {', '.join(names)}"
    return facts


def accuracy(metadata: Mapping[str, Any], weights: str) -> str:
    """The evaluation that the run made at the checkpoint's step, as a table; "" without one."""
    prefix = "eval_ema" if weights == "EMA" else "eval"
    found = metadata.get("checkpoint", {}).get("metrics", {})
    rows = []
    for head, (title, _) in HEADS.items():
        top1, top5 = (found.get(f"{prefix}/{head}/{key}") for key in ("top1", "top5"))
        if top1 is not None:
            shares = [f"{100 * share:.2f}" if share is not None else "" for share in (top1, top5)]
            rows.append(f"| {title} | {' | '.join(shares)} |")
    if not rows:
        return ""
    count = found.get(f"{prefix}/count")
    images = f"Evaluated by the run on {int(count):,} images.\n\n" if count else ""
    return images + "\n".join(["| head | top-1 % | top-5 % |", "|---|---:|---:|", *rows])


def training_facts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Data, length and origin of the run, as far as the checkpoint records them."""
    config, counts = metadata.get("config", {}), metadata.get("data", {})
    provenance = metadata.get("provenance", {})
    facts = {"data": _data(config.get("data", {}))}
    for key in ("train_images", "eval_images"):
        if key in counts:
            facts[f"images ({key.removesuffix('_images')})"] = f"{counts[key]:,}"
    step = metadata.get("checkpoint", {}).get("step")
    if config and step:
        facts["steps"] = f"{step:,}"
        if counts.get("steps_per_epoch"):
            facts["epochs"] = f"{step / counts['steps_per_epoch']:.4g}"
    facts["batch size"] = str(config.get("train", {}).get("batch_size", ""))
    facts |= {"started from": _last(config.get("init", "")), "teacher": _teacher(config)}
    for package in ("deit_jax", "python"):
        facts[package] = provenance.get(package, "")
    facts["jax"] = provenance.get("packages", {}).get("jax", "")
    return {name: value for name, value in facts.items() if value}


def _data(section: Mapping[str, Any]) -> str:
    source = section.get("source", "tfds" if section.get("name") else "")
    name = section.get("name") or _last(section.get("path") or "")
    return " ".join(part for part in (name, f"({source})" if source else "") if part)


def _teacher(config: Mapping[str, Any]) -> str:
    if config.get("loss", {}).get("distillation", "none") == "none":
        return ""
    teacher = config.get("teacher", {})
    source = _last(teacher.get("labels") or teacher.get("init") or teacher.get("name") or "")
    return f"{source} ({config['loss']['distillation']} distillation)"


def _last(place: str) -> str:
    """The name of a file or folder without the folders above it; names of the hub as they are."""
    return place if hf_hub.is_name(place) else place.rstrip("/").split("/")[-1]


def _recipe(config: Mapping[str, Any]) -> str:
    """The options of the run as JSON, without those of its machine."""
    if not config:
        return ""
    sections = {name: value for name, value in config.items() if name not in _PRIVATE_SECTIONS}
    flat = {
        key: _public(value, key in _SOURCES)
        for key, value in config_lib.flatten(sections).items()
        if key not in _PRIVATE and value not in (None, "")
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in flat.items()]
    return "```json\n{" + ",\n ".join(lines) + "}\n```"


def _public(value: Any, is_source: bool) -> Any:
    """`value` without folders of the machine."""
    if isinstance(value, list | tuple):
        return [_public(part, is_source) for part in value]
    is_place = isinstance(value, str) and (is_source or value.startswith(("/", "~", ".")))
    return _last(value) if is_place or isinstance(value, str) and "://" in value else value


def _table(facts: Mapping[str, str]) -> str:
    rows = [f"| {name} | {printable(value)} |".replace("\n", " ") for name, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""
