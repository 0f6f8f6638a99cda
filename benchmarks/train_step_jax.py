"""This library's worker of train_step.py: the training step of one case.

The step is that of a run of configs/deit.py or configs/deit_distilled.py with another input:
random uint8 images that are normalized on the device, with smoothed labels (`input` "image"), or
canvases of noise that go through the recipe's augmentation ("recipe"). The teacher has random
weights.
"""

import dataclasses
import time
from typing import Any

import common

START = time.perf_counter()

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import distributed
from deit_jax.augment import mix, normalize
from deit_jax.distributed import sharding
from deit_jax.recipe import hardware
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import init, schema
from deit_jax.train.speed import programs, synthetic, workers

CLASSES = 1000


def load_recipe(case: dict) -> Any:
    """The resolved config."""
    recipe = "deit_distilled" if case["teacher"] else "deit"
    overrides = [
        f"train.batch_size={case['batch_size']}",
        f"model.image_size={case['image_size']}",
        f"model.attention={case['attention']}",
        f"model.dtype={case['dtype']}",
        f"step.ema_decay={0.99996 if case['ema'] else 0.0}",
        f"input.canvas={case['canvas']}",
    ]
    if case["teacher"]:
        overrides += [f"teacher.name={case['teacher']}", f"teacher.dtype={case['dtype']}"]
    if case["input"] == "image":
        overrides += ["augment.mixup=0.0", "augment.cutmix=0.0"]
    return schema.load(f"{common.ROOT / 'configs' / recipe}.py:{case['size']}", overrides)


def plain_input(options: Any) -> Any:
    """`augment(key, batch)` that only normalizes and smooths."""

    def augment_fn(key: jax.Array, batch: dict) -> dict:
        return {
            "image": normalize.normalize(batch["image"], options.mean, options.std),
            "target": mix.smoothed_one_hot(batch["label"], CLASSES, options.smoothing),
            "label": batch["label"],
        }

    return augment_fn


def make_batch(experiment: experiment_lib.Experiment, case: dict) -> dict[str, jax.Array]:
    """One batch on the mesh, for `input` "image" or "recipe"."""
    if case["input"] == "recipe":
        return synthetic.noise_batch(experiment)
    rows, side = case["batch_size"], case["image_size"]
    draw = np.random.RandomState(0)
    image = draw.randint(0, 256, (rows, side, side, 3)).astype(np.uint8)
    label = draw.randint(0, CLASSES, rows).astype(np.int32)
    return sharding.to_global(experiment.mesh, {"image": image, "label": label})


def build(case: dict) -> experiment_lib.Experiment:
    """The experiment with the case's input."""
    resolved = load_recipe(case)
    experiment = synthetic.make_experiment(resolved, sharding.make_mesh(**resolved.mesh))
    if case["input"] == "image":
        experiment = dataclasses.replace(experiment, augment_fn=plain_input(resolved.augment))
    return experiment


class Case:
    """A compiled step, its state and its batch; the methods are request handlers."""

    def __init__(self, case: dict):
        self.experiment = build(case)
        self.state = init.initial_state(self.experiment)
        teacher, mesh = self.experiment.teacher, self.experiment.mesh
        self.teacher = synthetic.random_teacher(teacher, mesh) if teacher else {}
        self.batch = make_batch(self.experiment, case)
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
        of = {"batch_size": case["batch_size"], "teacher": teacher and teacher.model}
        flops = hardware.step_flops(self.experiment.recipe.model, **of)
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
        return {
            "peak_gib": hardware.peak_memory_gib(),
            "program_gib": programs.planned_bytes(self.step) / 2**30,
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
    """See `workers.serve`."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    opened = Case(case)
    return opened.ready, {"run": opened.run, "memory": opened.memory, "calibrate": calibrate}


if __name__ == "__main__":
    distributed.keep_freed_arrays()
    workers.serve(open_case)
