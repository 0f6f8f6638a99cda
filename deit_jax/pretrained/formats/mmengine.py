"""What checkpoints of mmengine, on which MMPretrain builds, hold beside the weights."""

from typing import Any

from deit_jax.pretrained.formats.safetensors_file import METADATA_KEY


def weights(tree: dict[Any, Any]) -> dict[Any, Any]:
    """`tree` with raw weights as `state_dict` and those of the EMA as `state_dict_ema`.

    mmengine's EMAHook swaps the two when it saves, so that `state_dict` holds the EMA. That of
    mmcv 1 keeps the raw weights in buffers called ema_*, which are left out, because the
    accuracies published with such files are of the others.
    """
    state, other = tree.get("state_dict"), tree.get("ema_state_dict")
    if not isinstance(state, dict):
        return tree
    state = {name: value for name, value in state.items() if not str(name).startswith("ema_")}
    if not isinstance(other, dict):
        return tree | {"state_dict": state}
    prefix = "module."
    named = {str(name): value for name, value in other.items()}
    raw = {name[len(prefix) :]: named[name] for name in named if name.startswith(prefix)}
    return tree | {"state_dict": raw, "state_dict_ema": state}


def notes(tree: dict[Any, Any]) -> dict[str, Any]:
    """The notes of `metadata`; of other files the names of the classes, where they have them."""
    meta = tree.get("meta")
    if not isinstance(meta, dict):
        return {}
    if isinstance(meta.get(METADATA_KEY), dict):
        return meta[METADATA_KEY]
    dataset = meta.get("dataset_meta", {"classes": meta.get("CLASSES")})
    return {"class_names": dataset.get("classes") if isinstance(dataset, dict) else None}


def metadata(notes: dict[str, Any]) -> dict[str, Any]:
    """The `meta` of a file for MMPretrain: names of the classes, and our notes."""
    names = notes["class_names"]
    return {"dataset_meta": {"classes": names} if names else {}, METADATA_KEY: notes}
