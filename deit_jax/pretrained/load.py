"""Weights from anywhere: published files, timm, Hugging Face, our own runs."""

import pathlib
from typing import Any

from deit_jax import checkpoint
from deit_jax.errors import ConfigError, printable
from deit_jax.models import create_model
from deit_jax.pretrained import hub
from deit_jax.pretrained import notes as notes_lib
from deit_jax.pretrained.checkpoint import CheckpointInfo, LoadedCheckpoint
from deit_jax.pretrained.formats import READERS, detect, huggingface, names, torch_file

# A file can have any number of wrong tensors, of any name.
_LONGEST_MESSAGE = 1000
# How to compute, not what: a checkpoint does not decide it.
_COMPUTE = ("dtype", "attention", "scan", "remat")


def load_checkpoint(
    path_or_name: str | pathlib.Path,
    *,
    ema: bool = False,
    which: str = "latest",
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> LoadedCheckpoint:
    """Reads weights, detecting format and naming.

    Args:
      path_or_name: a `.pth`/`.bin` file of torch (zip or older), a `.safetensors` file, a
        Hugging Face folder, a checkpoint or workdir of ours, or the name of a published
        checkpoint, which is downloaded unless it is in the cache.
      ema: read the EMA weights.
      which: of a run of ours, `latest`, `best` (by the metric that it selects by) or a step.
      model: registered name, when the shapes do not determine it.
      model_kwargs: arguments of `create_model`, likewise (num_heads, image_size, ...).

    Raises:
      FileNotFoundError: neither a path nor a published name.
      ConfigError: not readable, not safe, or not fitting; one line with file and reason.
    """
    return LoadedCheckpoint(**_read(path_or_name, ema, which, model, model_kwargs, arrays=True))


def describe(
    path_or_name: str | pathlib.Path,
    *,
    ema: bool = False,
    which: str = "latest",
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> CheckpointInfo:
    """What `load_checkpoint` would return, without arrays and without downloading.

    Of a run the metadata are read, of a `.safetensors` file the header, and of a published
    checkpoint that is not in the cache its row of `hub.PUBLISHED`; a torch file is read
    whole. Neither the digests of arrays nor all names and shapes are checked.

    Args and Raises: as `load_checkpoint`.
    """
    return CheckpointInfo(**_read(path_or_name, ema, which, model, model_kwargs, arrays=False))


def _read(
    path_or_name: str | pathlib.Path,
    ema: bool,
    which: str,
    model: str | None,
    model_kwargs: dict[str, Any] | None,
    *,
    arrays: bool,
) -> dict[str, Any]:
    """The fields of a `LoadedCheckpoint`; without `arrays` those of a `CheckpointInfo`."""
    path, model_kwargs = pathlib.Path(path_or_name), model_kwargs or {}
    if not path.exists():
        name, entry = hub.find(str(path_or_name))
        path = hub.fetch(entry) if arrays else hub.cached_path(entry)
        if not path.is_file():
            _refuse_selection(name, which)
            return _info(model or entry.model, model_kwargs, {}, source=name, format="published")
    if path.is_dir() and not huggingface.is_folder(path):
        return _read_run(path, ema, which, model, arrays=arrays)
    _refuse_selection(str(path), which)
    try:
        return _read_state_dict(path, ema, model, model_kwargs, arrays=arrays)
    except ConfigError as error:
        text = printable(str(error), limit=_LONGEST_MESSAGE)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _refuse_selection(source: str, which: str) -> None:
    if which != "latest":
        raise ConfigError(f"{source}: which={which!r} selects a step of a run; this is not a run")


def _read_run(
    path: pathlib.Path, ema: bool, which: str, model: str | None, *, arrays: bool
) -> dict[str, Any]:
    """A checkpoint folder or workdir of a training run."""
    folder, selection = checkpoint.select_step(path, which=which)
    metadata = checkpoint.read_metadata(folder, ema=ema)
    arguments = dict(metadata["model"])
    name = arguments.pop("name")
    arguments |= arguments.pop("kwargs", {})
    if model not in (None, name):
        raise ConfigError(f"{path} holds a {name}, not a {model}")
    info = _info(name, arguments, metadata, source=str(path), format="deit_jax")
    info |= {"metadata": metadata, "selection": selection}
    if arrays:
        info["variables"] = checkpoint.read_variables(folder, ema=ema)[0]
    return info


def _read_state_dict(
    path: pathlib.Path, ema: bool, model: Any, model_kwargs: dict[str, Any], *, arrays: bool
) -> dict[str, Any]:
    """A file of another framework, or one of ours with timm's or Hugging Face's names."""
    file = huggingface.weights_file(path) if path.is_dir() else path
    if arrays:
        hub.check_digest(file, hub.digest_in_name(file))
    read = READERS.get(file.suffix, torch_file.read_state_dict)
    tensors, notes = read(file, ema=ema, arrays=arrays)
    shapes = {name: array.shape for name, array in tensors.items()}
    naming = detect.naming_of(set(tensors))
    config = huggingface.read_config(file.parent) if naming.startswith("hf") else {}
    hints, image = huggingface.model_hints(config), huggingface.read_image(file.parent)
    if not config:
        hints, image = huggingface.read_timm(file.parent)
    hints = hints | model_kwargs
    if model is not None:
        name, arguments = model, {"num_classes": detect.num_classes(shapes, default=1000)} | hints
    elif notes.get("model"):
        arguments = notes_lib.check_model(notes["model"]) | model_kwargs
        name = arguments.pop("name")
    else:
        name, arguments = detect.guess_model(shapes, naming, hints)
    arguments = notes_lib.check_arguments(name, arguments)
    notes_lib.check_depth(arguments, len(tensors))
    if config and not notes.get("class_names"):
        num_classes = arguments.get("num_classes", 1000)
        notes = notes | {"class_names": huggingface.class_names(config, num_classes)}
    described = notes.get("model") or hub.is_published(file)
    notes = dict[str, Any]({"image": image} | notes)
    info = _info(name, arguments, notes, source=str(path), format=naming)
    if not described:
        info["assumed"] = _assumptions(name, info["model_kwargs"], hints, notes["image"])
    if arrays:
        table = names.entries(create_model(name, **info["model_kwargs"]), naming)
        info["variables"] = names.read(table, tensors)
    return info


def _assumptions(
    name: str, model_kwargs: dict[str, Any], hints: dict[str, Any], image: dict[str, Any]
) -> str:
    """What neither the file nor a config beside it tells, for the screen; "" for nothing."""
    assumed = []
    model = create_model(name, **model_kwargs)
    if "num_heads" not in hints and hasattr(model, "num_heads"):
        assumed.append(f"num_heads {model.num_heads} (model_kwargs num_heads sets it)")
    if not {"mean", "std"} <= image.keys():
        assumed.append("ImageNet's mean and std")
    listed = " and ".join(assumed)
    return f"no config beside the file tells, so assumed: {listed}" if listed else ""


def _info(
    model: str, arguments: dict[str, Any], notes: dict[str, Any], *, source: str, format: str
) -> dict[str, Any]:
    """Fields of a `CheckpointInfo`.

    `notes` of our own files hold `class_names` and `image`; the published model is the rest.
    """
    try:
        created = create_model(model, **arguments)
    except TypeError as error:  # an argument that is not an attribute of the model
        raise ConfigError(str(error)) from None
    image = notes_lib.check_image(notes.get("image", {}))
    return {
        "model": model,
        "model_kwargs": {key: arguments[key] for key in arguments if key not in _COMPUTE},
        "class_names": notes_lib.check_class_names(notes.get("class_names"), created),
        "source": source,
        "format": format,
        "image": {"size": tuple(created.image_size)} | hub.preparation(model) | image,
        "metadata": {},
    }
