"""The training step of a recipe as an accelerator's compiler makes it, without the accelerator.

    pip install "jax[tpu]"
    python benchmarks/programs.py --config=configs/deit.py:ti --target=v5e-256 --output=FILE

Compiles the step of a shipped recipe (other options as for train.py, --config.model.depth=2 for
example) for the devices of `TARGETS` and reports the plan of one chip's memory, seconds to
compile, and what the chips exchange in a step, by part of the design:

    gradients    sums over the devices: gradients, statistics of BatchNorm, metrics
    parameters   leaves that mesh.fsdp cuts, whole for the product that needs them
    canvases     with repeated augmentation, all canvases of the batch on every device
    mix          images and targets of the partners in mixup and CutMix
    small        at most 2^16 numbers

Anything else is in `not_in_the_design`, and the exit status is 1. Bytes are those of one chip;
`dcn` is what it sends to another slice. No data and no weights are read. `--keep=FOLDER` keeps
the program's text there and reads it again.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import common

if __name__ == "__main__":
    # The compiler asks nobody; the process itself computes on the CPU.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    # Several may compile at a time; the lock is for the device that none of them has.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import hlo
import jax
import jax.numpy as jnp

from deit_jax import augment, config, data, models
from deit_jax.distributed import sharding
from deit_jax.evaluation.evaluate import Evaluation
from deit_jax.recipe.recipe import make_recipe
from deit_jax.teacher import Teacher
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import init, schema
from deit_jax.train import step as step_lib

# Name -> arguments of jax's description of a TPU topology.
TARGETS = {
    "v5e-4": {"topology_name": "v5e:2x2"},
    "v5e-256": {"topology_name": "v5e:16x16"},
    "v4-128": {"topology_name": "v4:4x4x4", "chip_config_name": "megacore"},
    "2xv5e-16": {"topology_name": "v5e:4x4", "num_slices": 2},
}
RECORDS, CLASSES = 1_281_167, 1000
SMALL = 2**16


class Program(NamedTuple):
    """A compiled step: its HLO text, the plan of one device's memory, and how long it took."""

    text: str
    memory: dict[str, int]
    seconds: float


def target_devices(name: str) -> Sequence[Any]:
    """Devices of a target, to compile for only."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", **TARGETS[name]).devices


def experiment(resolved: Any, devices: Sequence[Any]) -> experiment_lib.Experiment:
    """The experiment of a config without its data and weights; ImageNet's sizes are assumed."""
    mesh = sharding.make_mesh(devices, **resolved.mesh)
    sizes = {"records": RECORDS, "num_classes": CLASSES, "device_count": mesh.size}
    recipe: Any = make_recipe(resolved, device=devices[0], **sizes)
    if hasattr(recipe.model, "attention_on"):
        # `auto` is decided where the program is traced, which is not where it is for.
        model = recipe.model.clone(attention=recipe.model.attention_on(devices[0]))
        recipe = dataclasses.replace(recipe, model=model)
    teacher = None
    if recipe.teacher:
        model = recipe.teacher.model
        fn = lambda variables, image: models.apply(model, variables, image).logits
        teacher = Teacher(fn, models.abstract_variables(model), "random", model)
    return experiment_lib.Experiment(
        recipe=recipe,
        data=None,  # type: ignore[arg-type]
        mesh=mesh,
        teacher=teacher,
        labels=None,
        record=None,
        start=None,
        augment_fn=augment.make_augment(recipe.supplied(mesh), **resolved.augment),
        evaluation=Evaluation(recipe.image_size, **resolved.eval),
        checkpointing={},
        max_nonfinite=1,
    )


def abstract_batch(e: experiment_lib.Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a training batch."""
    given, rows = e.recipe.config.input, e.recipe.config.train.batch_size
    n, side = data.canvas_count(rows, given.repeats, e.mesh.size), given.canvas
    cut = lambda *shape, dtype=jnp.int32: jax.ShapeDtypeStruct(
        shape, dtype, sharding=e.batch_sharding
    )
    batch = {"canvas": cut(n, side, side, 3, dtype=jnp.uint8), "size": cut(n, 2)}
    batch |= {"label": cut(n), "index": cut(n)}
    if given.repeats > 1:
        whole = sharding.replicated(e.mesh)
        batch["canvas_index"] = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=whole)
    return batch


def compile_step(e: experiment_lib.Experiment) -> Program:
    """The training step, compiled for the devices of the experiment's mesh."""
    whole = sharding.replicated(e.mesh)
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
    teacher = e.teacher and jax.tree.map(place, e.teacher.variables)
    step = step_lib.jit(e.make_train_step(), e.batch_sharding)
    lowered = step.lower(init.abstract_state(e), teacher, abstract_batch(e))
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    plan: Any = compiled.memory_analysis()
    names = ("argument", "output", "alias", "temp", "generated_code")
    memory = {name: getattr(plan, f"{name}_size_in_bytes") for name in names}
    return Program(compiled.as_text() or "", memory, seconds)


def part_of_design(e: experiment_lib.Experiment, collective: hlo.Collective) -> str | None:
    """The part of the design that a collective belongs to (see above), None for none."""
    rows = -(-e.recipe.config.train.batch_size // e.mesh.size)
    image = e.recipe.image_size**2 * 3
    leaves = [leaf.size for leaf in jax.tree.leaves(e.recipe.params)]
    dtypes = {dtype for dtype, _ in collective.arrays}
    floats = dtypes <= {"f32", "bf16"}
    if collective.elements <= SMALL:
        return "small"
    given = e.recipe.config.input
    n = data.canvas_count(e.recipe.config.train.batch_size, given.repeats, e.mesh.size)
    if collective.op in ("all-gather", "all-reduce") and dtypes <= {"u8", "u32"}:
        # As bytes or four at a time; a sum of one canvas and zeros is a gather as well.
        repeated = given.repeats > 1 and collective.nbytes <= n * given.canvas**2 * 3
        return "canvases" if repeated else None
    if collective.op in ("all-reduce", "reduce-scatter") and floats:
        # All leaves may be in one sum, padded to whole tiles.
        return "gradients" if collective.elements <= 1.1 * sum(leaves) + SMALL else None
    if collective.op == "all-gather" and floats and collective.elements <= 1.1 * max(leaves):
        # Whole leaves at most, padded. A sum over slices ends with a gather in each of them.
        fsdp, slices = e.mesh.shape["fsdp"], sharding.slice_count(e.mesh.devices.flat)
        return "parameters" if fsdp > 1 else "gradients" if slices > 1 else None
    mixes = e.recipe.mix_group is not None
    if collective.op in ("collective-permute", "all-to-all") and floats and mixes:
        return "mix" if collective.elements <= rows * (image + CLASSES) else None
    return None


def exchanged(e: experiment_lib.Experiment, found: Iterable[hlo.Collective]) -> dict[str, Any]:
    """Bytes a step by network, part and operation, and what no part explains."""
    parts: dict[str, dict[str, Any]] = {"ici": {}, "dcn": {}}
    strange = []
    for collective in found:
        part = part_of_design(e, collective)
        if part is None:
            strange.append(f"{collective.network} {collective.op} of {collective.arrays[0]}")
        entry = parts[collective.network].setdefault(part or "not in the design", {})
        counts = entry.setdefault(collective.op, {"count": 0, "bytes": 0})
        counts["count"] += 1
        counts["bytes"] += collective.nbytes
    return {"bytes_per_step": parts, "not_in_the_design": strange}


def report(e: experiment_lib.Experiment, program: Program, **about: Any) -> dict[str, Any]:
    """The result as JSON."""
    m = program.memory
    planned = m["argument"] + m["temp"] + m["output"] - m["alias"]
    found = hlo.collectives(program.text)
    return about | {
        "mesh": dict(e.mesh.shape),
        "rows_per_device": e.recipe.config.train.batch_size / e.mesh.size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(e.recipe.params)),
        "compile_s": round(program.seconds, 1),
        "hbm_plan_gib": round(planned / 2**30, 2),
        "hbm_plan_bytes": m,
        "looped_collectives": sum(collective.looped for collective in found),
        **exchanged(e, found),
    }


def _kept(folder: str | None, name: str, e: experiment_lib.Experiment) -> tuple[Program, dict]:
    """A program that was kept, or a new one, and from which source it was made."""
    made = {"versions": common.versions(), "commit": common.environment()["commit"]}
    if folder is None:
        return compile_step(e), made
    text, facts = (pathlib.Path(folder, f"{name}.{end}") for end in ("hlo", "json"))
    if not text.exists():
        program = compile_step(e)
        text.parent.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps([program.memory, program.seconds, made]))
        text.write_text(program.text)
    memory, seconds, made = json.loads(facts.read_text())
    return Program(text.read_text(), memory, seconds), made


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--target", required=True, choices=TARGETS)
    parser.add_argument("--output")
    parser.add_argument("--keep")
    flags, rest = parser.parse_known_args(argv)
    overrides = config.split_overrides(rest)
    devices = target_devices(flags.target)
    asked = {"default_backend": lambda: "tpu", "devices": lambda: list(devices)}
    # The library asks for which accelerator it makes a program.
    with mock.patch.multiple(jax, **asked):
        e = experiment(schema.load(flags.config, overrides), devices)
        words = [pathlib.Path(flags.config).name, flags.target, *overrides]
        name = "-".join(words).replace("/", "_")
        program, made = _kept(flags.keep, name, e)
    about = {"config": flags.config, "overrides": overrides, "target": flags.target} | made
    result = report(e, program, **about)
    common.report(result, flags.output)
    return 1 if result["not_in_the_design"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
