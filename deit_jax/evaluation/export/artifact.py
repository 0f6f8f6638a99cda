"""A checkpoint as one file for prediction, and a JSON file that says how to use it."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp

import deit_jax
from deit_jax import builders, models, pretrained, storage
from deit_jax.errors import ConfigError
from deit_jax.evaluation import heads
from deit_jax.evaluation.classify import readable_names
from deit_jax.evaluation.export.onnx_file import to_onnx
from deit_jax.pretrained import CheckpointInfo

PLATFORMS = ("cpu", "cuda", "tpu")
# Offsets in both kinds of file have 32 bits with a sign; the graph takes a little.
_LARGEST = 2**31 - 2**26


def to_jax(model: models.Model, variables: dict[str, Any], description: dict[str, Any]) -> bytes:
    """For `jax.export.deserialize`: `image` f32 [batch, H, W, 3] -> outputs by name."""
    from jax import export as jax_export

    def predict(image: jax.Array) -> dict[str, jax.Array]:
        output = models.apply(model, variables, image)
        scores = heads.head_outputs(output)
        found = {"logits": output.logits, "dist_logits": output.dist_logits}
        found["probabilities"] = jnp.exp(scores[heads.main_head(scores)])
        return {name: found[name] for name in description["outputs"]}

    (rows,) = jax_export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((rows, *model.image_size, 3), jnp.float32)
    exported = jax_export.export(jax.jit(predict), platforms=PLATFORMS)(image)
    return bytes(exported.serialize())


# By name, which is also the suffix of the file.
FORMATS = {"jax": to_jax, "onnx": to_onnx}


def export(
    loaded: pretrained.LoadedCheckpoint,
    path: str | os.PathLike | storage.Path,
    *,
    to: str | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """Writes `path`, and its description beside it, see `description_path`.

    The weights are in the file, in f32; the number of images is free.

    Args:
      to: a name in `FORMATS`; None: by the suffix of `path`.
      image_size: side in pixels; None for the checkpoint's.

    Returns the description, see `describe`.

    Raises:
      ConfigError: no such format, a file that exists, a model that cannot be expressed or is too
        large for one file, or a missing package.
    """
    path = storage.path(path)
    write = builders.choose(FORMATS, to or path.suffix.removeprefix("."), "format")
    beside = description_path(path)
    if existing := [file for file in (path, beside) if file.exists()]:
        raise ConfigError(f"{existing[0]} exists; remove it or choose another name")
    attributes: dict[str, Any] = {"image_size": image_size} if image_size else {}
    if hasattr(loaded.create_model(), "attention"):
        # Kernels of one accelerator would not run on the others.
        attributes["attention"] = "xla"
    model = loaded.create_model(**attributes)
    if (size := 4 * model.count().parameters) > _LARGEST:
        raise ConfigError(
            f"{loaded.label} has {size / 2**30:.1f} GiB of weights, and such a file holds 2 GiB at "
            "most; use deit-jax convert, which has no limit"
        )
    name = next(name for name, function in FORMATS.items() if function is write)
    description = describe(loaded, model, name)
    variables = pretrained.adapt(loaded, model=model).variables
    storage.write(path, write(model, variables, description))
    storage.write(beside, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
    return description


def description_path(path: storage.Path) -> storage.Path:
    """Where the description of an exported file is: `mine.onnx.json`."""
    return path.with_name(f"{path.name}.json")


def describe(info: CheckpointInfo, model: models.Model, to: str) -> dict[str, Any]:
    """What is needed to use the file, as JSON: input, preparation, outputs and class names."""
    height, width = model.image_size
    crop = info.image["crop_ratio"]
    shape = ["batch", height, width, 3] if to == "jax" else ["batch", 3, height, width]
    outputs = {"logits": "class head", "probabilities": "softmax of the logits"}
    if "dist" in model.heads:
        outputs["dist_logits"] = "distillation head"
        outputs["probabilities"] = "softmax of the mean of both heads' logits"
    return {
        "format": to,
        "model": info.model,
        "parameters": model.count().parameters,
        "source": info.label,
        "input": {"name": "image", "shape": shape, "dtype": "float32", "channels": "RGB"},
        "preprocessing": {
            "resize_shorter_side": int(min(height, width) / crop),
            "interpolation": "bicubic, antialiased",
            "center_crop": [height, width],
            "divide_by": 255,
            "mean": list(info.mean),
            "std": list(info.std),
        },
        "outputs": outputs,
        "class_names": readable_names(info),
        "versions": {"deit_jax": deit_jax.__version__, "jax": jax.__version__},
    }
