"""A recipe without its data and weights: what its steps are compiled from, and batches of noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import augment, data, models, storage
from deit_jax.data import order
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError
from deit_jax.evaluation.evaluate import Evaluation
from deit_jax.recipe.recipe import Recipe, make_recipe
from deit_jax.teacher import PREFIX, StoredLabels, Teacher, live
from deit_jax.train.experiment import Experiment

# ImageNet's.
RECORDS, CLASSES = 1_281_167, 1000
_DISTINCT = 64


def make_experiment(
    config: Any, mesh: jax.sharding.Mesh, *, num_classes: int = CLASSES, device: Any = None
) -> Experiment:
    """The experiment of a resolved config on a mesh, with abstract weights and without data.

    Args:
      device: what it is for, see `models.accelerator`; by default the first of the mesh.

    Raises:
      ConfigError: what is wrong with the config, a batch that the devices do not divide, or a
        teacher without a model.
    """
    device = device or mesh.devices.flat[0]
    sizes: Any = {"records": RECORDS, "num_classes": num_classes, "device_count": mesh.size}
    recipe: Any = make_recipe(config, device=device, **sizes)
    _check_rows(config, mesh)
    return Experiment(
        recipe=recipe,
        data=None,  # pyright: ignore[reportArgumentType]
        mesh=mesh,
        teacher=_teacher(recipe),
        labels=_labels(recipe),
        record=None,
        start=None,
        augment_fn=augment.make_augment(recipe.supplied(mesh), **config.augment),
        evaluation=Evaluation(recipe.image_size, **config.eval),
        checkpointing={},
        max_nonfinite=1,
        span=None,
    )


def _check_rows(config: Any, mesh: jax.sharding.Mesh) -> None:
    rows, multiple = config.train.batch_size, mesh.size * config.step.accum_steps
    if rows % multiple:
        raise ConfigError(
            f"config.train.batch_size must be a multiple of {multiple} (devices x "
            f"config.step.accum_steps), not {rows}"
        )


def _labels(recipe: Recipe) -> StoredLabels | None:
    if recipe.teacher is None or recipe.teacher.stored is None:
        return None
    folder = storage.path(recipe.config.teacher.labels)
    return StoredLabels(folder, recipe.teacher.stored, recipe.durations.total_steps)


def _teacher(recipe: Recipe) -> Teacher | None:
    if recipe.teacher is None or recipe.teacher.stored is not None:
        return None
    if recipe.teacher.model is None:
        raise ConfigError(
            f"the teacher has no model to compile ({recipe.teacher.description}): give "
            "config.teacher.name, or leave it out with config.loss.distillation=none, which costs "
            "what stored labels cost"
        )
    return live.without_weights(recipe.teacher.model, recipe.image_size)


def random_teacher(teacher: Teacher, mesh: jax.sharding.Mesh) -> Any:
    """Random variables of a teacher, whole on every device."""
    members = getattr(teacher.model, "members", None)
    fresh = lambda key: (
        tuple(models.init_variables(member, key) for member in members)
        if members
        else models.init_variables(teacher.model, key)
    )
    return jax.jit(fresh, out_shardings=sharding.replicated(mesh))(jax.random.key(1))


def rows(e: Experiment, count: int, side: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of `count` canvases."""
    cut = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(
        shape, dtype, sharding=e.batch_sharding
    )
    batch = {"canvas": cut(count, side, side, 3, dtype=jnp.uint8), "size": cut(count, 2)}
    return batch | {"label": cut(count), "index": cut(count)}


def abstract_batch(e: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a training batch."""
    given, batch_size = e.recipe.config.input, e.recipe.config.train.batch_size
    batch = rows(e, data.canvas_count(batch_size, given.repeats, e.mesh.size), given.canvas)
    if given.repeats > 1:
        whole = sharding.replicated(e.mesh)
        batch["canvas_index"] = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=whole)
    if e.labels:
        row = e.labels.kind.row
        for name in row.names or ():
            shape = (batch_size, *row[name].shape)
            batch[PREFIX + name] = jax.ShapeDtypeStruct(
                shape, row[name].base, sharding=e.batch_sharding
            )
    return batch


def noise_canvases(count: int, canvas: int) -> dict[str, np.ndarray]:
    """Canvases uint8 [count, C, C, 3] of noise; one side is 0.98 C, the other 0.6 C to 0.98 C."""
    draw = np.random.RandomState(0)
    canvases = np.zeros((min(count, _DISTINCT), canvas, canvas, 3), np.uint8)
    sizes = draw.randint(int(0.6 * canvas), int(0.98 * canvas), (len(canvases), 2))
    sizes[np.arange(len(canvases)), draw.randint(0, 2, len(canvases))] = int(0.98 * canvas)
    for image, (height, width) in zip(canvases, sizes, strict=True):
        image[:height, :width] = draw.randint(0, 256, (height, width, 3))
    rows = np.arange(count) % len(canvases)
    return {"canvas": canvases[rows], "size": sizes[rows].astype(np.int32)}


def noise_batch(e: Experiment) -> dict[str, jax.Array]:
    """A training batch on the mesh: photos of noise, each for the rows that a run gives it."""
    shapes = abstract_batch(e)
    count, side = shapes["canvas"].shape[:2]
    host = noise_canvases(min(count, _DISTINCT), side)
    number = np.arange(count, dtype=np.int32)
    # Repeated on the device: a batch of photos is gigabytes.
    repeat = lambda x: x[number % len(host["size"])]
    batch = {
        name: jax.jit(repeat, out_shardings=shapes[name].sharding)(x) for name, x in host.items()
    }
    small: Any = {"label": number % e.recipe.num_classes, "index": number}
    small |= {
        name: np.zeros(shape.shape, shape.dtype)
        for name, shape in shapes.items()
        if name.startswith(PREFIX)
    }
    if "canvas_index" in shapes:
        recipe = e.recipe
        of_run = order.TrainOrder(
            n_records=RECORDS,
            batch_size=recipe.config.train.batch_size,
            repeats=recipe.config.input.repeats,
            mix_group=recipe.mix_group,
            device_count=e.mesh.size,
        )
        small["canvas_index"] = of_run(0).canvas_index
    return batch | {name: jax.device_put(x, shapes[name].sharding) for name, x in small.items()}
