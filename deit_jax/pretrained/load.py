"""Weights from anywhere: published files, timm, Hugging Face, our own runs."""

import pathlib
from typing import Any

from deit_jax import checkpoint
from deit_jax.errors import ConfigError, close_matches
from deit_jax.models import create_model
from deit_jax.pretrained import hub
from deit_jax.pretrained.checkpoint import CheckpointInfo, LoadedCheckpoint
from deit_jax.pretrained.formats import READERS, detect, huggingface, names, torch_file

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
    path = pathlib.Path(path_or_name)
    if not path.exists():
        path = hub.fetch(_published(path_or_name)[1])
    info = _read(path, ema, which, model, model_kwargs or {}, arrays=True)
    assert isinstance(info, LoadedCheckpoint)
    return info


def describe(
    path_or_name: str | pathlib.Path,
    *,
    ema: bool = False,
    which: str = "latest",
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> CheckpointInfo:
    """What `load_checkpoint` would answer, without arrays and without downloading.

    Of a run the metadata are read, of a `.safetensors` file the header, and of a published
    checkpoint that is not in the cache its row of `hub.PUBLISHED`; a torch file is read
    whole. Neither the digests of arrays nor all names and shapes are checked.

    Args and Raises: as `load_checkpoint`.
    """
    path = pathlib.Path(path_or_name)
    if not path.exists():
        name, entry = _published(path_or_name)
        path = hub.cached_path(entry)
        if not path.is_file():
            _refuse_selection(name, which)
            return _info(
                model or entry.model, dict(model_kwargs or {}), source=name, format="published"
            )
    return _read(path, ema, which, model, model_kwargs or {}, arrays=False)


def _published(name: str | pathlib.Path) -> tuple[str, hub.Published]:
    found = hub.find(str(name))
    if found is None:
        near = close_matches(str(name), hub.PUBLISHED)
        raise FileNotFoundError(
            f"{name}: no such file or folder, and not a published checkpoint; known: {near}"
        )
    return found


def _read(
    path: pathlib.Path,
    ema: bool,
    which: str,
    model: str | None,
    model_kwargs: dict[str, Any],
    *,
    arrays: bool,
) -> CheckpointInfo:
    if path.is_dir() and not huggingface.is_folder(path):
        return _read_run(path, ema, which, model, arrays=arrays)
    _refuse_selection(str(path), which)
    try:
        return _read_state_dict(path, ema, model, model_kwargs, arrays=arrays)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _refuse_selection(source: str, which: str) -> None:
    if which != "latest":
        raise ConfigError(f"{source}: which={which!r} selects a step of a run; this is not a run")


def _read_run(
    path: pathlib.Path, ema: bool, which: str, model: str | None, *, arrays: bool
) -> CheckpointInfo:
    """A checkpoint folder or workdir of a training run."""
    step = checkpoint.select_step(path, which=which)
    metadata = checkpoint.read_metadata(step.folder, ema=ema)
    arguments = dict(metadata["model"])
    name = arguments.pop("name")
    arguments |= arguments.pop("kwargs", {})
    if model not in (None, name):
        raise ConfigError(f"{path} holds a {name}, not a {model}")
    info = _info(
        name,
        arguments,
        source=str(path),
        format="deit_jax",
        notes=metadata,
        metadata=metadata,
        selection=step.selection,
    )
    if not arrays:
        return info
    return _with(info, checkpoint.read_variables(step.folder, ema=ema)[0])


def _read_state_dict(
    path: pathlib.Path,
    ema: bool,
    model: Any,
    model_kwargs: dict[str, Any],
    *,
    arrays: bool,
) -> CheckpointInfo:
    """A file of another framework, or one of ours with timm's or Hugging Face's names."""
    file = huggingface.weights_file(path) if path.is_dir() else path
    if arrays:
        hub.check_digest(file, hub.digest_in_name(file))
    read = READERS.get(file.suffix, torch_file.read_state_dict)
    tensors, notes = read(file, ema=ema, arrays=arrays)
    shapes = detect.shapes_of(tensors)
    naming = detect.naming_of(set(tensors))
    config = huggingface.read_config(file.parent) if naming.startswith("hf") else {}
    hints = huggingface.model_hints(config) | model_kwargs
    if model is not None:
        name, arguments = model, {"num_classes": detect.num_classes(shapes, default=1000)} | hints
    elif notes.get("model"):
        arguments = dict(notes["model"]) | model_kwargs
        name = arguments.pop("name")
    else:
        name, arguments = detect.guess_model(shapes, naming, hints)
    if config and not notes.get("class_names"):
        num_classes = arguments.get("num_classes", 1000)
        notes = notes | {"class_names": huggingface.class_names(config, num_classes)}
    info = _info(name, arguments, source=str(path), format=naming, notes=notes)
    if not arrays:
        return info
    return _with(info, names.read(names.entries(info.create_model(), naming), tensors))


def _info(
    model: str, arguments: dict[str, Any], *, notes: dict[str, Any] | None = None, **fields: Any
) -> CheckpointInfo:
    """`notes` of our own files hold `class_names` and `image`; the published model is the rest."""
    notes = notes or {}
    try:
        size = create_model(model, **arguments).image_size
    except TypeError as error:  # an argument that is not an attribute of the model
        raise ConfigError(str(error)) from None
    image = {"size": tuple(size)} | hub.preparation(model) | notes.get("image", {})
    names_of_classes = notes.get("class_names")
    fields.setdefault("metadata", {})
    return CheckpointInfo(
        model=model,
        model_kwargs={key: value for key, value in arguments.items() if key not in _COMPUTE},
        class_names=tuple(names_of_classes) if names_of_classes else None,
        image=image,
        **fields,
    )


def _with(info: CheckpointInfo, variables: dict[str, Any]) -> LoadedCheckpoint:
    return LoadedCheckpoint(**vars(info), variables=variables)
