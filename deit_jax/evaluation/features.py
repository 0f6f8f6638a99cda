"""Embeddings of photos: what the model knows of them before its heads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from deit_jax import data, models, storage
from deit_jax.data.all_photos import AllPhotos
from deit_jax.distributed import sharding
from deit_jax.evaluation.evaluate import Evaluation, fetched
from deit_jax.evaluation.evaluator import square_side
from deit_jax.pretrained import LoadedCheckpoint

PyTree = Any


class Features(NamedTuple):
    """Embeddings of N photos.

    Attributes:
      arrays: f32 [N, D] by name, see `Model.embeddings`.
      index: int [N], numbers of the photos that they are of, in order.
      corrupt: names of the photos that could not be read or decoded.
    """

    arrays: dict[str, np.ndarray]
    index: np.ndarray
    corrupt: list[str]


def compute(
    loaded: LoadedCheckpoint,
    photos: AllPhotos,
    *,
    batch_size: int = 64,
    crop_ratio: float | None = None,
) -> Features:
    """Embeddings of photos, prepared as in evaluation, computed on all devices.

    Args:
      batch_size: photos at a time, rounded up to the devices.
      crop_ratio: None for the checkpoint's.

    Raises:
      ConfigError: a model that has no embeddings, or no photo that can be decoded.
    """
    model, mesh = loaded.create_model(), sharding.make_mesh()
    rows = -(-batch_size // mesh.size) * mesh.size
    ratio = crop_ratio or loaded.image["crop_ratio"]
    evaluation = Evaluation(square_side(model), batch_size=rows, crop_ratio=ratio)
    on_rows = sharding.batch_sharding(mesh)
    step = make_step(model, evaluation.make_transform(loaded.mean, loaded.std))
    step = jax.jit(sharding.on_rows(step, on_rows))
    variables = jax.device_put(loaded.variables, sharding.replicated(mesh))
    # Names of the photos are the answer here, not a reason to stop.
    host = evaluation.batches(photos.source, {"max_corrupt_share": 1.0})
    parts = []
    with data.prefetch_to_device(host, lambda b: sharding.to_global(on_rows, b)) as batches:
        for found in fetched(step(variables, batch) for batch in batches):
            mask = found.pop("mask")
            parts.append({name: value[mask] for name, value in found.items()})
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    index = whole.pop("index")
    present = set(index.tolist())
    corrupt = [name for i, name in enumerate(photos.names) if i not in present]
    return Features(whole, index, corrupt)


def make_step(
    model: models.Model, transform: Callable[[PyTree], jax.Array]
) -> Callable[[PyTree, PyTree], dict[str, jax.Array]]:
    """Builds `step(variables, batch) -> embeddings by name, index, mask`, for `jax.jit`."""

    def step(variables: PyTree, batch: PyTree) -> dict[str, jax.Array]:
        _, features = models.apply(model, variables, transform(batch), capture=True)
        return model.embeddings(features) | {key: batch[key] for key in ("index", "mask")}

    return step


def write(path: storage.Path, features: Features, photos: AllPhotos) -> None:
    """An `.npz` file: the arrays, `names`, `corrupt`; with classes `labels`, `class_names`."""
    arrays: dict[str, Any] = dict(features.arrays)
    arrays["names"] = np.array([photos.names[i] for i in features.index], np.str_)
    arrays["corrupt"] = np.array(features.corrupt, np.str_)
    if photos.class_names:
        arrays["labels"] = photos.source.labels[features.index]
        arrays["class_names"] = np.array(photos.class_names, np.str_)
    with storage.replacing(path) as file:
        np.savez(file, **arrays)
