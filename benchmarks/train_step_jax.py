"""This library's worker of train_step.py: the training step of one case.

The step is that of a run of configs/deit.py or configs/deit_distilled.py with another input:
random uint8 images that are normalized on the device, with smoothed labels (`input` "image"), or
canvases of noise that go through the recipe's augmentation ("recipe"). The teacher has random
weights.
"""

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import common

START = time.perf_counter()

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import data, losses, models, rng
from deit_jax.augment import mix, normalize
from deit_jax.distributed import sharding
from deit_jax.recipe import hardware
from deit_jax.teacher import Teacher
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import schema
from deit_jax.train import step as step_lib

CLASSES = 1000


def load_recipe(case: dict, folder: str) -> tuple[Any, dict]:
    """(resolved config without teacher, the loss section of the recipe)."""
    recipe = "deit_distilled" if case["teacher"] else "deit"
    path = pathlib.Path(folder, "stand_in.npz")
    images, labels = np.zeros((CLASSES, 2, 2, 3), np.uint8), np.arange(CLASSES)
    np.savez(path, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    overrides = [
        "data.source=arrays",
        f"data.path={path}",
        f"train.batch_size={case['batch_size']}",
        f"model.image_size={case['image_size']}",
        f"model.attention={case['attention']}",
        f"model.dtype={case['dtype']}",
        f"step.ema_decay={0.99996 if case['ema'] else 0.0}",
        f"input.canvas={case['canvas']}",
        f"eval.batch_size={jax.device_count()}",
    ]
    if case["input"] == "image":
        overrides += ["augment.mixup=0.0", "augment.cutmix=0.0"]
    spec = f"{common.ROOT / 'configs' / recipe}.py:{case['size']}"
    load = lambda extra: schema.load(spec, [*overrides, *extra])
    return load(["loss.distillation=none"]), dict(load([]).loss)


def random_teacher(case: dict) -> tuple[Teacher, models.Model]:
    """The named model with random weights and BatchNorm folded, as in a run."""
    model = models.create_model(
        case["teacher"], num_classes=CLASSES, image_size=case["image_size"], dtype=case["dtype"]
    )
    variables = models.init_variables(model, jax.random.key(1))
    folded, variables = model.fold_batch_norm(variables)
    fn = lambda variables, image: models.apply(folded, variables, image).logits
    return Teacher(fn, variables, case["teacher"], folded), model


def plain_input(options: Any) -> Any:
    """`augment(key, batch)` that only normalizes and smooths."""

    def augment_fn(key: jax.Array, batch: dict) -> dict:
        return {
            "image": normalize.normalize(batch["image"], options.mean, options.std),
            "target": mix.smoothed_one_hot(batch["label"], CLASSES, options.smoothing),
            "label": batch["label"],
        }

    return augment_fn


def make_batch(case: dict, devices: int) -> dict[str, np.ndarray]:
    """Host arrays of one batch, for `input` "image" or "recipe"."""
    rows, side = case["batch_size"], case["image_size"]
    draw = np.random.RandomState(0)
    if case["input"] == "image":
        image = draw.randint(0, 256, (rows, side, side, 3)).astype(np.uint8)
        return {"image": image, "label": draw.randint(0, CLASSES, rows).astype(np.int32)}
    from augment_device import noise_canvases

    count = data.canvas_count(rows, 3, devices)
    batch = noise_canvases(count, case["canvas"])
    batch["label"] = draw.randint(0, CLASSES, count).astype(np.int32)
    return batch | {"canvas_index": (np.arange(rows) % count).astype(np.int32)}


def build(case: dict) -> tuple[experiment_lib.Experiment, models.Model | None]:
    """The experiment with the case's input and teacher, and the teacher's model."""
    with tempfile.TemporaryDirectory() as folder:
        resolved, loss = load_recipe(case, folder)
        experiment = experiment_lib.build(resolved)
    teacher, teacher_model = random_teacher(case) if case["teacher"] else (None, None)
    if teacher is not None:
        recipe = dataclasses.replace(experiment.recipe, loss_fn=losses.make_loss(**loss))
        experiment = dataclasses.replace(experiment, recipe=recipe, teacher=teacher)
    if case["input"] == "image":
        experiment = dataclasses.replace(experiment, augment_fn=plain_input(resolved.augment))
    return experiment, teacher_model


def first_state(experiment: experiment_lib.Experiment, ema: bool) -> Any:
    """Random weights and optimizer state, on the mesh."""
    init = lambda key: step_lib.init_state(
        experiment.recipe.model, experiment.recipe.tx, key, ema=ema
    )
    key = rng.base_key(0)
    where = sharding.tree_shardings(experiment.mesh, jax.eval_shape(init, key))
    return jax.jit(init, out_shardings=where)(key)


class Case:
    """A compiled step, its state and its batch; the methods are request handlers."""

    def __init__(self, case: dict):
        self.experiment, teacher_model = build(case)
        self.state = first_state(self.experiment, case["ema"])
        teacher = self.experiment.teacher
        replicated = sharding.replicated(self.experiment.mesh)
        self.teacher = jax.device_put(teacher.variables if teacher else {}, replicated)
        self.batch = sharding.to_global(
            self.experiment.mesh, make_batch(case, self.experiment.mesh.size)
        )
        size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
        self.state_bytes = size((self.state, self.teacher))
        jax.block_until_ready((self.state, self.batch))
        step = self.experiment.make_train_step()
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self.state, self.teacher, self.batch)
        traced = time.perf_counter()
        self.step = lowered.compile()
        compiled = time.perf_counter()
        metrics = self._run(1)
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(f"the loss is {metrics['loss']}")
        flops = hardware.step_flops(
            self.experiment.recipe.model, batch_size=case["batch_size"], teacher=teacher_model
        )
        self.ready = {
            "trace_s": round(traced - start, 2),
            "compile_s": round(compiled - traced, 2),
            "first_step_s": round(time.perf_counter() - start, 2),
            "process_to_first_step_s": round(time.perf_counter() - START, 2),
            "loss": float(metrics["loss"]),
            "flops_per_step": flops,
            "peak_flops": self._peak_flops(case),
            "environment": common.environment(),
        }

    def _peak_flops(self, case: dict) -> float | None:
        if case["dtype"] != "bfloat16":
            return None
        peak = hardware.peak_flops(jax.devices()[0])
        return peak and peak * self.experiment.mesh.size

    def _run(self, count: int) -> dict:
        for _ in range(count):
            self.state, metrics = self.step(self.state, self.teacher, self.batch)
        return jax.device_get(metrics)

    def run(self, steps: int) -> dict:
        """Seconds for `steps` steps with one synchronization at the end."""
        start = time.perf_counter()
        self._run(steps)
        return {"seconds": time.perf_counter() - start}

    def memory(self) -> dict:
        """GiB: peak of the device, need of the compiled program, and size of the state alone."""
        planned = self.step.memory_analysis()
        program = None
        if planned is not None:
            program = planned.argument_size_in_bytes + planned.temp_size_in_bytes
            program += planned.output_size_in_bytes - planned.alias_size_in_bytes
        return {
            "peak_gib": hardware.peak_memory_gib(),
            "program_gib": program and program / 2**30,
            "state_gib": self.state_bytes / 2**30,
        }


def calibrate(side: int, count: int) -> dict:
    """FLOP/s of bf16 products of random [side, side] matrices, on one device."""
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(a, b))
    start = time.perf_counter()
    for _ in range(count):
        out = product(a, b)
    jax.block_until_ready(out)
    return {"flops": 2 * side**3 * count / (time.perf_counter() - start)}


def open_case(case: dict) -> tuple[dict, dict]:
    """See `common.serve`."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    opened = Case(case)
    return opened.ready, {"run": opened.run, "memory": opened.memory, "calibrate": calibrate}


if __name__ == "__main__":
    common.serve(open_case)
