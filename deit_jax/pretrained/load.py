"""Weights from anywhere: published files, timm, Hugging Face, our own checkpoints."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from deit_jax.errors import ConfigError, close_matches
from deit_jax.models import Model, create_model
from deit_jax.pretrained import hub
from deit_jax.pretrained.adapt import Initialised, Report, initialise
from deit_jax.pretrained.formats import detect, names
from deit_jax.pretrained.formats.safetensors_file import read_safetensors
from deit_jax.pretrained.formats.torch_file import read_torch

__all__ = ["Initialised", "Loaded", "Report", "initialise", "load_checkpoint"]

# How to compute, not what: a checkpoint does not decide it.
_COMPUTE = ("dtype", "attention", "scan", "remat")
_WRAPPERS = ("model", "state_dict")
_EMA_WRAPPERS = ("model_ema", "state_dict_ema")
_HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory.

    Attributes:
      variables: numpy arrays, as `models.init_variables` lays them out.
      model: registered name.
      model_kwargs: further arguments of `create_model`.
      class_names: K names, or None where the file does not tell.
      source: path that was read.
      format: `timm`, `facebook`, `hf`, `hf-modules` or `deit_jax`.
      image: `size` (height, width), `mean`, `std`, `crop_ratio` of the evaluation.
      metadata: what else a checkpoint of ours holds.
    """

    variables: dict[str, Any]
    model: str
    model_kwargs: dict[str, Any]
    class_names: tuple[str, ...] | None
    source: str
    format: str
    image: dict[str, Any]
    metadata: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.variables["params"]["head"]["bias"].shape[0]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the pixels / 255 per channel, before the model."""
        return tuple(self.image["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """The same for the standard deviation."""
        return tuple(self.image["std"])

    def create_model(self, **overrides: Any) -> Model:
        """The model of these variables."""
        return create_model(self.model, **self.model_kwargs | overrides)


def load_checkpoint(
    path_or_name: str | pathlib.Path,
    *,
    ema: bool = False,
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
) -> Loaded:
    """Reads weights, detecting format and naming.

    Args:
      path_or_name: a `.pth`/`.bin` file of torch (zip or older), a `.safetensors` file, a folder of
        Hugging Face, a checkpoint or workdir of ours, or the name of a published checkpoint.
      ema: take the averaged weights.
      model: registered name, when it cannot be told from the shapes.
      model_kwargs: arguments of `create_model`, likewise (num_heads, image_size, ...).

    Raises:
      FileNotFoundError: neither a path nor a published name.
      ConfigError: not readable, not safe, or not fitting; one line with file and reason.
    """
    path = pathlib.Path(path_or_name)
    if not path.exists():
        found = hub.find(str(path_or_name))
        if found is None:
            near = close_matches(str(path_or_name), hub.PUBLISHED)
            raise FileNotFoundError(
                f"{path_or_name}: no such file or folder, nor a published checkpoint; known: {near}"
            )
        path = hub.fetch(found[1])
    overrides = dict(model_kwargs or {})
    if path.is_dir() and not any((path / name).is_file() for name in _HF_WEIGHTS):
        loaded = _load_ours(path, ema)
        if model not in (None, loaded.model):
            raise ConfigError(f"{path} holds a {loaded.model}, not a {model}")
        return loaded
    try:
        return _load_foreign(path, ema, model, overrides)
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if text.startswith(str(path)) else f"{path}: {text}") from None
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from None


def _load_ours(path: pathlib.Path, ema: bool) -> Loaded:
    """A checkpoint directory or workdir of a training run."""
    from deit_jax.checkpoint import read_variables

    variables, metadata = read_variables(path, ema=ema)
    arguments = dict(metadata["model"])
    name = arguments.pop("name")
    arguments |= arguments.pop("kwargs", {})
    names_of_classes = metadata.get("class_names")
    model = create_model(name, **arguments)
    return Loaded(
        variables=variables,
        model=name,
        model_kwargs=_without_compute(arguments),
        class_names=tuple(names_of_classes) if names_of_classes else None,
        source=str(path),
        format="deit_jax",
        image=_image(name, model.image_size, metadata.get("image", {})),
        metadata=metadata,
    )


def _load_foreign(
    path: pathlib.Path, ema: bool, model: str | None, overrides: dict[str, Any]
) -> Loaded:
    weights = _weights_file(path)
    tensors, notes = _read_file(weights, ema)
    naming = detect.naming_of(set(tensors))
    config = _hf_config(weights.parent) if naming.startswith("hf") else {}
    hints = _hints(config) | overrides
    if model is None and notes.get("model"):
        arguments = dict(notes["model"]) | overrides
        name = arguments.pop("name")
    elif model is None:
        name, arguments = detect.guess_model(detect.shapes_of(tensors), naming, hints)
    else:
        _, arguments = model, {"num_classes": _classes(tensors)} | hints
        name = model
    created = create_model(name, **arguments)
    variables = names.read(names.entries(created, naming), tensors)
    return Loaded(
        variables=variables,
        model=name,
        model_kwargs=_without_compute(arguments),
        class_names=_class_names(notes, config, variables),
        source=str(path),
        format=naming,
        image=_image(name, created.image_size, notes.get("image", {})),
        metadata={},
    )


def _weights_file(path: pathlib.Path) -> pathlib.Path:
    if path.is_file():
        return path
    for name in _HF_WEIGHTS:
        if (path / name).is_file():
            return path / name
    if list(path.glob("*.index.json")):
        raise ConfigError(f"{path}: weights split over several files are not read; join them first")
    raise FileNotFoundError(f"{path}: no {' or '.join(_HF_WEIGHTS)} in this folder")


def _read_file(path: pathlib.Path, ema: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(tensors by name, our notes) of one file; its digest is checked where there is one."""
    hub.check_digest(path, hub.digest_in_name(path))
    if path.suffix == ".safetensors":
        if ema:
            raise ConfigError("holds no averaged weights beside the raw ones")
        return read_safetensors(path)
    tree = read_torch(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"holds a {type(tree).__name__}, not a state dict")
    wrapper = next((key for key in (_EMA_WRAPPERS if ema else _WRAPPERS) if key in tree), None)
    if ema and wrapper is None:
        raise ConfigError(f"holds no averaged weights ({' or '.join(_EMA_WRAPPERS)})")
    state = tree[wrapper] if wrapper else tree
    if not isinstance(state, dict) or not state:
        raise ConfigError("holds no state dict")
    other = [str(k) for k, v in state.items() if not (isinstance(k, str) and _is_array(v))]
    if other:
        raise ConfigError(f"entries that are no tensors: {', '.join(other[:5])}")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state, {}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _classes(tensors: dict[str, np.ndarray]) -> int:
    for name in ("head.weight", "head.fc.weight", "cls_classifier.weight", "classifier.weight"):
        if name in tensors:
            return tensors[name].shape[0]
    return tensors["classifier.1.weight"].shape[0] if "classifier.1.weight" in tensors else 1000


def _hf_config(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: damaged file ({error})") from None
    if config.get("model_type") not in ("deit", "vit", "regnet"):
        raise ConfigError(
            f"{path}: model_type {config.get('model_type')!r}; known: deit, vit, regnet"
        )
    return config


def _hints(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `create_model` that a Hugging Face config.json tells.

    Its `layer_norm_eps` (1e-12 in DeiT files of the hub, where 1e-6 was trained with) is
    followed, so that the answers equal those of transformers.
    """
    if not config or config["model_type"] == "regnet":
        return {}
    known = {"num_attention_heads": "num_heads", "layer_norm_eps": "epsilon"}
    hints = {ours: config[theirs] for theirs, ours in known.items() if theirs in config}
    if config.get("hidden_act", "gelu") != "gelu" or not config.get("qkv_bias", True):
        raise ConfigError("config.json asks for another activation than gelu, or no qkv bias")
    if "image_size" in config:
        size = config["image_size"]
        hints["image_size"] = tuple(size) if isinstance(size, list) else size
    return hints


def _class_names(
    notes: dict[str, Any], config: dict[str, Any], variables: dict[str, Any]
) -> tuple[str, ...] | None:
    if notes.get("class_names"):
        return tuple(notes["class_names"])
    labels = config.get("id2label", {})
    count = variables["params"]["head"]["bias"].shape[0]
    found = [labels.get(str(i), f"LABEL_{i}") for i in range(count)]
    # transformers writes LABEL_0, LABEL_1, ... when it was told no names.
    return None if found == [f"LABEL_{i}" for i in range(count)] else tuple(found)


def _image(name: str, size: tuple[int, int], known: dict[str, Any]) -> dict[str, Any]:
    """How images are prepared: what the file says, else as for the published model."""
    checkpoints = list(hub.checkpoints_of(name).values())
    crop_ratio = checkpoints[0].crop_ratio if checkpoints else 0.875
    defaults = {"mean": hub.MEAN, "std": hub.STD, "crop_ratio": crop_ratio}
    return {"size": tuple(size)} | defaults | known


def _without_compute(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key not in _COMPUTE}
