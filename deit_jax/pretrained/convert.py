"""Weights from any of the formats that are read to timm's, Hugging Face's or ours."""

import json
import pathlib
from typing import Any

import jax

import deit_jax
from deit_jax import pretrained
from deit_jax.errors import ConfigError, unknown
from deit_jax.pretrained.formats import huggingface, names
from deit_jax.pretrained.formats.safetensors_file import write_safetensors
from deit_jax.train_state import TrainState

FORMATS = ("jax", "timm", "hf")


def convert(
    source: str | pathlib.Path,
    destination: str | pathlib.Path,
    *,
    to: str | None = None,
    model: str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    ema: bool = False,
) -> pretrained.Loaded:
    """Reads `source` (see `pretrained.load_checkpoint`) and writes it to `destination`.

    `to`: `timm`, one `.safetensors` file with timm's names; `hf`, a folder with
    model.safetensors, config.json and preprocessor_config.json for transformers; `jax`, a
    checkpoint folder of ours. None: `timm` for a destination called *.safetensors, else `jax`.

    Raises ConfigError, also when the destination exists: nothing is overwritten.
    """
    destination = pathlib.Path(destination)
    if to is None:
        to = "timm" if destination.suffix == ".safetensors" else "jax"
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if to == "timm" and destination.suffix != ".safetensors":
        raise ConfigError(f"{destination}: a file for timm is called *.safetensors")
    if destination.exists():
        raise ConfigError(f"{destination} exists; remove it or choose another destination")
    loaded = pretrained.load_checkpoint(source, ema=ema, model=model, model_kwargs=model_kwargs)
    destination.parent.mkdir(parents=True, exist_ok=True)
    {"jax": save_jax, "timm": save_timm, "hf": save_hf}[to](loaded, destination)
    return loaded


def save_timm(loaded: pretrained.Loaded, path: pathlib.Path) -> None:
    """One file that `timm.create_model(name, ...).load_state_dict` takes, strictly."""
    model = loaded.create_model()
    if getattr(model, "distilled", False) and not model.dist_head:
        raise ConfigError("timm has no distilled model without the distillation head; use --to=hf")
    tensors = names.write(names.entries(model, "timm"), loaded.variables)
    write_safetensors(path, tensors, _notes(loaded))


def save_hf(loaded: pretrained.Loaded, folder: pathlib.Path) -> None:
    """A folder for `from_pretrained`: DeiT (distilled), ViT (plain) and RegNet classes."""
    model = loaded.create_model()
    config = huggingface.model_config(model, loaded.class_names)
    tensors = names.write(names.entries(model, "hf"), loaded.variables)
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors, _notes(loaded))
    for name, content in (
        ("config.json", config),
        ("preprocessor_config.json", huggingface.processor_config(loaded.image)),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def save_jax(loaded: pretrained.Loaded, folder: pathlib.Path) -> None:
    """A checkpoint folder of ours at step 0, for evaluation and as a starting point."""
    from deit_jax.checkpoint import Checkpointer

    variables = jax.tree.map(jax.numpy.asarray, loaded.variables)
    state = TrainState(
        step=jax.numpy.zeros((), jax.numpy.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        ema_params=None,
        ema_batch_stats=None,
        opt_state={},
    )
    metadata = _notes(loaded) | {
        "config": {},
        "versions": {"deit_jax": deit_jax.__version__, "jax": jax.__version__},
    }
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(0, state, metadata=metadata)


def _notes(loaded: pretrained.Loaded) -> dict[str, Any]:
    """What a state dict does not tell: architecture, classes, preparation of images."""
    return {
        "model": {"name": loaded.model} | loaded.model_kwargs,
        "class_names": loaded.class_names and list(loaded.class_names),
        "image": loaded.image,
    }
