"""Inference and training as compiled programs on the hardware at hand, and the memory they take."""

import functools
import re
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from deit_jax import models, storage
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError
from deit_jax.recipe import hardware
from deit_jax.train import init
from deit_jax.train import step as step_lib
from deit_jax.train.experiment import Experiment
from deit_jax.train.speed import synthetic

GIB = 2**30


class OutOfMemory(Exception):
    """A program does not fit; the message says into what."""


class Memory(NamedTuple):
    """Bytes that one device needs for a program, its weights and its batch, and who says so."""

    nbytes: int
    source: str


class Subject:
    """What is measured: a recipe and its model, at any batch size.

    Attributes:
      label: its name in tables.
      config: resolved; its batch size is replaced.
      mesh: the devices.
      num_classes: of its data.
      weights: by name, on the mesh; the programs of all batch sizes share them.
    """

    def __init__(
        self, label: str, config: Any, mesh: jax.sharding.Mesh, num_classes: int = synthetic.CLASSES
    ):
        self.label, self.config, self.mesh = label, config, mesh
        self.num_classes = num_classes
        self.weights: dict[str, Any] = {}

    def experiment(self, batch_size: int) -> Experiment:
        """See `synthetic.make_experiment`."""
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.train.batch_size = batch_size
        return synthetic.make_experiment(config, self.mesh, num_classes=self.num_classes)

    @property
    def name(self) -> str:
        """Of its model."""
        return self.config.model.name

    def is_registered(self, model: models.Model) -> bool:
        """Whether the recipe's model is the one of its name, but perhaps for the images' size."""
        registered = models.create_model(self.name, image_size=model.image_size)
        return model.count() == registered.count()

    @functools.cached_property
    def own(self) -> Experiment:
        """The recipe with its own batch, or one that the devices divide.

        Raises:
          ConfigError: what is wrong with the recipe at any batch size.
        """
        multiple = self.mesh.size * max(self.config.step.accum_steps, 1)
        size = self.config.train.batch_size
        return self.experiment(size if size % multiple == 0 else 2 * multiple)

    def place(self, name: str, make: Callable[[], Any]) -> Any:
        """`weights[name]`, made if there are none, or a program that failed has them."""
        held = self.weights.get(name)
        if held is None or any(leaf.is_deleted() for leaf in jax.tree.leaves(held)):
            held = self.weights[name] = make()
        return held


class Program:
    """One compiled program with its arrays; `uses` names the weights that come before its batch.

    Raises:
      ConfigError: the recipe or the devices cannot have this batch.
      OutOfMemory: it does not fit.
    """

    kind: ClassVar[str]
    uses: ClassVar[tuple[str, ...]]

    def __init__(self, subject: Subject, batch_size: int):
        self.subject, self.batch_size = subject, batch_size
        self.experiment = self.make_experiment()
        try:
            self._open()
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(_first_line(error)) from None
            raise

    def _open(self) -> None:
        self.place_weights()
        weights = jax.block_until_ready([self.subject.weights.get(name) for name in self.uses])
        function, self.abstract = self.function()
        start = time.perf_counter()
        self.compiled = function.lower(*weights, self.abstract).compile()
        self.compile_s = time.perf_counter() - start
        planned = planned_bytes(self.compiled)
        _check_host_memory(planned)
        devices = [
            d for d in self.subject.mesh.devices.flat if d.process_index == jax.process_index()
        ]
        held = _bytes_on(devices[0], weights)
        before = [device.memory_stats() for device in devices]
        self.batch = self.make_batch()
        jax.block_until_ready(self.call())
        after = [device.memory_stats() for device in devices]
        counted = _counted_bytes(before, after, held)
        if counted is not None:
            self.memory = Memory(counted, "device")
        else:
            self.memory = Memory(planned, "compiled program")

    def make_experiment(self) -> Experiment:
        """The recipe at this batch size.

        Raises:
          ConfigError: there is none.
        """
        raise NotImplementedError

    def place_weights(self) -> None:
        """Makes what the program uses, on the mesh."""
        raise NotImplementedError

    def function(self) -> tuple[Any, Any]:
        """The jitted function, and shapes and shardings of its batch."""
        raise NotImplementedError

    def make_batch(self) -> Any:
        """Its batch, on the mesh."""
        raise NotImplementedError

    def call(self) -> Any:
        """Starts the program once; its outputs, perhaps not ready yet."""
        return self.compiled(*map(self.subject.weights.get, self.uses), self.batch)

    def flops(self) -> float:
        """Floating-point operations of one call, two for each multiply-accumulate."""
        raise NotImplementedError


class Inference(Program):
    """Logits of normalized images, f32 [B, h, w, 3], that are on the device."""

    kind = "inference"
    uses = ("variables",)

    def make_experiment(self) -> Experiment:
        if self.batch_size % self.subject.mesh.size:
            raise ConfigError(f"no multiple of the {self.subject.mesh.size} devices")
        # Of the recipe the model alone counts, whatever batches it is trained with.
        return self.subject.own

    def place_weights(self) -> None:
        model, mesh = self.experiment.recipe.model, self.subject.mesh

        def make() -> Any:
            fresh = lambda key: models.init_variables(model, key)
            where = sharding.tree_shardings(mesh, jax.eval_shape(fresh, jax.random.key(0)))
            return jax.jit(fresh, out_shardings=where)(jax.random.key(0))

        self.subject.place("variables", make)

    def function(self) -> tuple[Any, Any]:
        model, rows = self.experiment.recipe.model, self.experiment.batch_sharding
        apply = lambda variables, image: models.apply(model, variables, image)
        shape = (self.batch_size, *model.image_size, 3)
        abstract = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)
        return jax.jit(sharding.on_rows(apply, rows)), abstract

    def make_batch(self) -> Any:
        shape, where = self.abstract.shape, self.abstract.sharding
        draw = lambda key: jax.random.normal(key, shape, jnp.float32)
        return jax.jit(draw, out_shardings=where)(jax.random.key(1))

    def flops(self) -> float:
        return 2.0 * self.experiment.recipe.model.count().macs * self.batch_size


class Training(Program):
    """The recipe's step: augmentation, teacher, forward and backward pass, optimizer, EMA."""

    kind = "training"
    uses = ("state", "teacher")

    def make_experiment(self) -> Experiment:
        return self.subject.experiment(self.batch_size)

    def place_weights(self) -> None:
        teacher = self.experiment.teacher
        self.subject.place("state", lambda: init.initial_state(self.experiment))
        if teacher is not None:
            make = lambda: synthetic.random_teacher(teacher, self.subject.mesh)
            self.subject.place("teacher", make)

    def function(self) -> tuple[Any, Any]:
        e = self.experiment
        return step_lib.jit(e.make_train_step(), e.batch_sharding), synthetic.abstract_batch(e)

    def make_batch(self) -> Any:
        return synthetic.noise_batch(self.experiment)

    def call(self) -> Any:
        state, metrics = super().call()
        self.subject.weights["state"] = state
        return state, metrics

    def flops(self) -> float:
        teacher = self.experiment.teacher
        of = {"batch_size": self.batch_size, "teacher": teacher and teacher.model}
        return hardware.step_flops(self.experiment.recipe.model, **of)


PROGRAMS: dict[str, type[Program]] = {program.kind: program for program in (Inference, Training)}


def is_out_of_memory(error: Exception) -> bool:
    """Whether a program failed for want of memory, on a device or on this machine."""
    if isinstance(error, MemoryError | OutOfMemory):
        return True
    text = str(error)
    failed = isinstance(error, jax.errors.JaxRuntimeError)
    return failed and bool(re.search(r"RESOURCE_EXHAUSTED|out of memory", text, re.IGNORECASE))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]


def planned_bytes(compiled: Any) -> int:
    """What a compiled program needs on one device, its arguments included, by the compiler."""
    plan = compiled.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
    )


def _counted_bytes(before: list[Any], after: list[Any], weights: int) -> int | None:
    """What the fullest device took for a program; None where its peak is an earlier program's."""
    found = []
    for old, new in zip(before, after, strict=True):
        if not old or not new or "peak_bytes_in_use" not in new:
            return None
        if new["peak_bytes_in_use"] <= old["peak_bytes_in_use"]:
            return None
        found.append(new["peak_bytes_in_use"] - old["bytes_in_use"] + weights)
    return max(found)


def _bytes_on(device: Any, tree: Any) -> int:
    shards = (s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards)
    return sum(shard.data.nbytes for shard in shards if shard.device == device)


def _check_host_memory(planned: int) -> None:
    """A CPU's programs are not refused: the system ends the process."""
    if jax.default_backend() != "cpu":
        return
    free = _free_bytes()
    if free is not None and planned > free:
        raise OutOfMemory(
            f"needs {planned / GIB:.3g} GiB by the compiler's plan, and {free / GIB:.3g} are free"
        )


def _free_bytes() -> int | None:
    """What processes of this machine can still take; None where the system does not tell."""
    try:
        text = storage.path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else None
