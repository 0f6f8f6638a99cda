"""Weights from anywhere: published files, timm, Hugging Face, our own runs."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from deit_jax import checkpoint, storage
from deit_jax.errors import ConfigError, printable
from deit_jax.models import Model, create_model
from deit_jax.models.registry import ARCHITECTURES
from deit_jax.pretrained import hf_hub, hub
from deit_jax.pretrained import notes as notes_lib
from deit_jax.pretrained.checkpoint import CheckpointInfo, LoadedCheckpoint
from deit_jax.pretrained.formats import READERS, detect, huggingface, names, torch_file

# A file can have any number of wrong tensors, of any name.
_LONGEST_MESSAGE = 1000
# How to compute, not what: a checkpoint does not decide it.
_COMPUTE = ("dtype", "attention", "scan", "remat")


class _Asked(NamedTuple):
    """The options of `load_checkpoint`."""

    ema: bool
    which: str
    model: str | None
    model_kwargs: dict[str, Any]
    like: Model | None


def load_checkpoint(
    path_or_name: str | os.PathLike | storage.Path,
    *,
    ema: bool = False,
    which: str = "latest",
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    like: Model | None = None,
) -> LoadedCheckpoint:
    """Reads weights, detecting format and naming.

    Args:
      path_or_name: a `.pth`/`.bin` file of torch (zip or older), a `.safetensors` file, a
        Hugging Face folder, a checkpoint or workdir of ours, on this machine or at a URL such
        as gs://bucket/run, or the name of a published checkpoint or of a repository of the
        Hugging Face hub (`hf-hub:OWNER/NAME`, `timm/NAME`), downloaded unless in the cache.
      ema: read the EMA weights.
      which: of a run of ours, `latest`, `best` (by the metric that it selects by) or a step.
      model: registered name, when the shapes do not determine it.
      model_kwargs: arguments of `create_model`, likewise (num_heads, image_size, ...).
      like: a model whose `undetermined` attributes hold where nothing else says them: the one
        that the weights are for.

    Raises:
      FileNotFoundError: neither a path nor a published name.
      ConfigError: not readable, not safe, not fitting, or known to be another model than asked
        for; one line with file and reason.
    """
    asked = _Asked(ema, which, model, model_kwargs or {}, like)
    return LoadedCheckpoint(**_read(path_or_name, asked, arrays=True))


def describe(
    path_or_name: str | os.PathLike | storage.Path,
    *,
    ema: bool = False,
    which: str = "latest",
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    like: Model | None = None,
) -> CheckpointInfo:
    """What `load_checkpoint` would return, without arrays and without downloading.

    Of a run the metadata are read, of a `.safetensors` file the header, and of a published
    checkpoint that is not in the cache its row of `hub.PUBLISHED`; a torch file is read
    whole, and a repository of the hub is fetched. Neither the digests of arrays nor all names
    and shapes are checked.

    Args and Raises: as `load_checkpoint`.
    """
    asked = _Asked(ema, which, model, model_kwargs or {}, like)
    return CheckpointInfo(**_read(path_or_name, asked, arrays=False))


def _read(
    path_or_name: str | os.PathLike | storage.Path, asked: _Asked, *, arrays: bool
) -> dict[str, Any]:
    """The fields of a `LoadedCheckpoint`; without `arrays` those of a `CheckpointInfo`."""
    path = storage.path(path_or_name)
    source = str(path)
    # os.path takes any text.
    if not (path.exists() if storage.is_remote(path) else os.path.exists(str(path))):
        if storage.is_remote(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
        if hf_hub.is_name(source):
            _refuse_selection(source, asked.which)
            path = hf_hub.fetch(source)
        else:
            name, entry = hub.find(source)
            path = hub.fetch(entry) if arrays else hub.cached_path(entry)
            source = str(path)
            if not path.is_file():
                return _read_published(name, entry, asked)
    if path.is_dir() and not huggingface.is_folder(path):
        return _read_run(path, asked, arrays=arrays)
    _refuse_selection(source, asked.which)
    try:
        with _on_this_machine(path) as file:
            return _read_state_dict(file, source, asked, arrays=arrays)
    except ConfigError as error:
        text = printable(str(error), limit=_LONGEST_MESSAGE)
        named = text.startswith((source, str(path)))
        raise ConfigError(text if named else f"{source}: {text}") from None


def _read_published(name: str, entry: hub.Published, asked: _Asked) -> dict[str, Any]:
    """A published checkpoint by its row, without its file."""
    _refuse_selection(name, asked.which)
    model = asked.model or entry.model
    _refuse_contradiction(name, ARCHITECTURES[entry.model][1], asked)
    return _info(model, asked.model_kwargs, {}, source=name, format="published")


@contextlib.contextmanager
def _on_this_machine(path: storage.Path) -> Iterator[pathlib.Path]:
    """The file with the weights, and the settings beside it; errors name `path`."""
    file = huggingface.weights_file(path) if path.is_dir() else path
    only = (file.name, "config.json", "preprocessor_config.json")
    with storage.local_copy(file.parent, only=only) as folder:
        try:
            yield folder / file.name
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(folder), str(file.parent))) from None


def _refuse_selection(source: str, which: str) -> None:
    if which != "latest":
        raise ConfigError(f"{source}: which={which!r} selects a step of a run; this is not a run")


def _refuse_contradiction(source: str, known: dict[str, Any], asked: _Asked) -> None:
    """Raises ConfigError for another model than asked for; `known` are arguments known of it."""
    given = {"name": asked.model} | asked.model_kwargs
    for key in [key for key in given if given[key] is not None and key in known]:
        if known[key] != given[key]:
            form = "a {}" if key == "name" else f"{key}={{}}"
            there, asked_for = form.format(known[key]), form.format(given[key])
            raise ConfigError(f"{source} holds {there}, not {asked_for}")


def _read_run(path: storage.Path, asked: _Asked, *, arrays: bool) -> dict[str, Any]:
    """A checkpoint folder or workdir of a training run."""
    folder, selection = checkpoint.select_step(path, which=asked.which)
    if asked.ema:
        selection = f"the EMA weights of {selection or path}"
    metadata = checkpoint.read_metadata(folder, ema=asked.ema)
    arguments = dict(metadata["model"])
    arguments |= arguments.pop("kwargs", {})
    _refuse_contradiction(str(path), arguments, asked)
    name = arguments.pop("name")
    info = _info(name, arguments, metadata, source=str(path), format="deit_jax")
    info |= {"metadata": metadata, "selection": selection}
    if arrays:
        info["variables"] = checkpoint.read_variables(folder, ema=asked.ema)[0]
    return info


def _read_state_dict(
    file: pathlib.Path, source: str, asked: _Asked, *, arrays: bool
) -> dict[str, Any]:
    """A file of another framework, or one of ours with timm's or Hugging Face's names."""
    if arrays:
        hub.check_digest(file, hub.digest_in_name(file))
    read = READERS.get(file.suffix, torch_file.read_state_dict)
    tensors, notes = read(file, ema=asked.ema, arrays=arrays)
    selection = ""
    if notes.pop(torch_file.HAS_BOTH, False):
        other = "" if asked.ema else " (it has EMA weights too: --ema, init_ema, teacher.ema)"
        selection = f"the {'EMA' if asked.ema else 'raw'} weights of {source}{other}"
    shapes = {name: array.shape for name, array in tensors.items()}
    naming = detect.naming_of(set(tensors))
    config = huggingface.read_config(file.parent) if naming.startswith("hf") else {}
    known, image = huggingface.model_hints(config), huggingface.read_image(file.parent)
    if not config:
        known, image = huggingface.read_timm(file.parent)
        if known and not notes.get("class_names"):
            notes = notes | {"class_names": huggingface.timm_class_names(file.parent)}
    published = hub.published_model(file)
    if published:
        family, attributes = ARCHITECTURES[published]
        known = {key: attributes[key] for key in family.undetermined} | known
    if notes.get("model"):
        known = notes_lib.check_model(notes["model"])
    _refuse_contradiction(source, known, asked)
    hints = known | asked.model_kwargs
    undetermined = [key for key in getattr(asked.like, "undetermined", ()) if key not in hints]
    hints |= {key: getattr(asked.like, key) for key in undetermined}
    if "name" in known:
        name, arguments = hints.pop("name"), hints
    elif asked.model is not None:
        num_classes = detect.num_classes(shapes, default=1000)
        name, arguments = asked.model, {"num_classes": num_classes} | hints
    else:
        name, arguments = detect.guess_model(shapes, naming, hints)
    arguments = notes_lib.check_arguments(name, arguments)
    notes_lib.check_depth(arguments, len(tensors))
    if config and not notes.get("class_names"):
        num_classes = arguments.get("num_classes", 1000)
        notes = notes | {"class_names": huggingface.class_names(config, num_classes)}
    notes = dict[str, Any]({"image": image} | notes)
    info = _info(name, arguments, notes, source=source, format=naming)
    info["selection"] = selection
    if "name" not in known and not published:
        info["assumed"] = _assumptions(info, known | asked.model_kwargs, notes["image"], asked)
    if arrays:
        table = names.entries(create_model(name, **info["model_kwargs"]), naming)
        info["variables"] = names.read(table, tensors)
    return info


def _assumptions(
    info: dict[str, Any], known: dict[str, Any], image: dict[str, Any], asked: _Asked
) -> str:
    """What neither the file nor a config beside it says, for the screen; "" for nothing."""
    model = create_model(info["model"], **info["model_kwargs"])
    origin = "as the model to start has" if asked.like else f"as {info['model']} has"
    assumed = [
        f"{key} {getattr(model, key)} ({origin}; {key} sets it)"
        for key in model.undetermined
        if key not in known
    ]
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
