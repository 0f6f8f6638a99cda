"""From any format that `load_checkpoint` reads to timm's, Hugging Face's, MMPretrain's or ours."""

import json
import os
from typing import Any

import jax

import deit_jax
from deit_jax import builders, storage
from deit_jax.checkpoint import Checkpointer
from deit_jax.errors import ConfigError
from deit_jax.pretrained.checkpoint import LoadedCheckpoint
from deit_jax.pretrained.formats import huggingface, mmengine, names
from deit_jax.pretrained.formats.safetensors_file import write_safetensors
from deit_jax.pretrained.formats.torch_file import write_torch
from deit_jax.pretrained.load import load_checkpoint
from deit_jax.train_state import TrainState


def save_timm(loaded: LoadedCheckpoint, path: storage.Path) -> None:
    """One .safetensors file for `timm.create_model(name, ...).load_state_dict`, strictly."""
    if path.suffix != ".safetensors":
        raise ConfigError(f"{path}: a file for timm must be called *.safetensors")
    model = loaded.create_model()
    if model.optional_params and "dist" not in model.heads:
        raise ConfigError("timm has no distilled model without the distillation head; use --to=hf")
    tensors = names.write(names.entries(model, "timm"), loaded.variables)
    with storage.local_output(path) as file:
        write_safetensors(file, tensors, _notes(loaded))


def save_hf(loaded: LoadedCheckpoint, folder: storage.Path) -> None:
    """A folder for `from_pretrained` of transformers: DeiT (distilled), ViT (plain) and RegNet."""
    model = loaded.create_model()
    config = huggingface.model_config(model, loaded.class_names)
    processor = huggingface.processor_config(loaded.image)
    tensors = names.write(names.entries(model, "hf"), loaded.variables)
    with storage.local_output(folder) as local:
        local.mkdir()
        write_safetensors(local / "model.safetensors", tensors, _notes(loaded))
        for name, content in (("config", config), ("preprocessor_config", processor)):
            storage.write(local / f"{name}.json", json.dumps(content, indent=2) + "\n")


def save_mmpretrain(loaded: LoadedCheckpoint, path: storage.Path) -> None:
    """One .pth file for `init_cfg` or `get_model(..., pretrained=path)` of MMPretrain."""
    if path.suffix != ".pth":
        raise ConfigError(f"{path}: a file for MMPretrain must be called *.pth")
    model = loaded.create_model()
    if model.optional_params and "dist" not in model.heads:
        raise ConfigError("MMPretrain has no distilled model without the distillation head")
    if "gamma_1" in loaded.variables["params"].get("blocks_0", {}):
        raise ConfigError(
            "MMPretrain's class of DeiT-III does not apply the second LayerNorm of a block, so its "
            "outputs would differ; use --to=timm"
        )
    tensors = names.write(names.entries(model, "mmpretrain"), loaded.variables)
    with storage.local_output(path) as file:
        write_torch(file, {"meta": mmengine.metadata(_notes(loaded)), "state_dict": tensors})


def save_jax(loaded: LoadedCheckpoint, folder: storage.Path) -> None:
    """A checkpoint folder of ours at step 0, for evaluation and as a starting point."""
    variables = jax.tree.map(jax.numpy.asarray, loaded.variables)
    params, stats = variables["params"], variables.get("batch_stats", {})
    state = TrainState(jax.numpy.int32(0), params, stats, None, None, opt_state={})
    versions = {"deit_jax": deit_jax.__version__, "jax": jax.__version__}
    metadata = _notes(loaded) | {"config": {}, "versions": versions}
    with Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(0, state, metadata=metadata)


def _notes(loaded: LoadedCheckpoint) -> dict[str, Any]:
    """What a state dict lacks: architecture, classes, preparation of images."""
    return {
        "model": {"name": loaded.model} | loaded.model_kwargs,
        "class_names": loaded.class_names and list(loaded.class_names),
        "image": loaded.image,
    }


WRITERS = {"jax": save_jax, "timm": save_timm, "hf": save_hf, "mmpretrain": save_mmpretrain}


def convert(
    source: str | os.PathLike | storage.Path,
    destination: str | os.PathLike | storage.Path,
    *,
    to: str | None = None,
    **options: Any,
) -> LoadedCheckpoint:
    """Reads `source`, with the options of `load_checkpoint`, and writes it to `destination`.

    Args:
      to: a target of `WRITERS`; None: `timm` for a destination called *.safetensors, else `jax`.

    Raises:
      ConfigError: also when the destination exists; nothing is overwritten.
    """
    destination = storage.path(destination)
    if to is None:
        to = "timm" if destination.suffix == ".safetensors" else "jax"
    write = builders.choose(WRITERS, to, "format")
    if destination.exists():
        raise ConfigError(f"{destination} exists; remove it or choose another destination")
    loaded = load_checkpoint(source, **options)
    write(loaded, destination)
    return loaded
