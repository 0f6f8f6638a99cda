"""The steps of a recipe as an accelerator's compiler makes them, without the accelerator.

    pip install "jax[tpu]"       (for GPUs "jax[cuda12]")
    python benchmarks/programs.py --config=configs/deit.py:s --target=v5e-1 \
        --config.train.batch_size=128 --output=FILE
    python benchmarks/programs.py ... --config.model.attention=xla --against=FILE

Compiles a step of a shipped recipe (other options as for train.py, --config.model.depth=2 for
example) for the devices of `program_targets.TARGETS`, and prints and stores

    what each part of the step costs an image, see `program_parts.py`; beside another result with
    --against
    the plan of one device's memory, seconds to compile, and the operations of the products beside
    what the formula of `deit-jax explain` says
    bytes that one device exchanges with others, see `program_exchange.py`; `dcn` is what it sends
    to another slice

No data and no weights are read. The exit status is 1 if something is exchanged that the design
does not have. `--keep=FOLDER` keeps the program's text there and reads it again.
"""

import argparse
import json
import pathlib
import re
import sys
from typing import Any

import common
import program_targets

if __name__ == "__main__":
    program_targets.prepare()

import hlo
import hlo_cost
import jax
import kernel_schedule
import program_exchange
import program_parts
import program_steps

from deit_jax import config
from deit_jax.distributed import sharding
from deit_jax.recipe import costs, hardware
from deit_jax.train import experiment as experiment_lib
from deit_jax.train import schema

WHAT = "compiler's estimate and bytes over bandwidth; nothing was read off a device"


def kernel_cycles(target: str, operation: hlo_cost.Operation) -> float:
    """Cycles of one of this library's kernels in a program for a target."""
    assert operation.kernel
    name = re.findall(r"(\w+)/pallas_call", operation.scope)[-1]
    return kernel_schedule.cycles(target, name, operation.kernel)


def report(
    e: experiment_lib.Experiment,
    program: program_steps.Program,
    target: program_targets.Target,
    about: dict[str, Any],
) -> dict[str, Any]:
    """The result as JSON; `about` says what was compiled, its `step` among it."""
    recipe, step = e.recipe, about["step"]
    batch_size = recipe.config.train.batch_size if step != "eval" else e.evaluation.batch_size
    m, rows = program.memory, batch_size / e.mesh.size
    planned = m["argument"] + m["temp"] + m["output"] - m["alias"]
    found = hlo.collectives(program.text)
    operations = hlo_cost.operations(program.text)
    weighed = program_parts.weigh(
        operations, target, rows, lambda operation: kernel_cycles(target.name, operation)
    )
    result = {
        **about,
        "what": WHAT,
        "mesh": dict(e.mesh.shape),
        "rows_per_device": rows,
        "attention": getattr(recipe.model, "attention", None),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(recipe.params)),
        "compile_s": round(program.seconds, 1),
        "hbm_plan_gib": round(planned / 2**30, 2),
        "hbm_plan_bytes": m,
        "an_image": weighed,
    }
    if step == "train":
        teacher = recipe.teacher and recipe.teacher.model
        flops = hardware.step_flops(recipe.model, batch_size=batch_size, teacher=teacher)
        result["gflop_by_formula"] = round(flops / batch_size / 1e9, 3)
        result["hbm_explain_gib"] = round(costs.step_memory(recipe).total / 2**30, 2)
    looped = sum(collective.looped for collective in found)
    return result | {"looped_collectives": looped, **program_exchange.exchanged(e, found)}


def _kept(
    folder: str | None, name: str, e: experiment_lib.Experiment, step: str
) -> tuple[program_steps.Program, dict]:
    """A program that was kept, or a new one, and from which source it was made."""
    made = {"versions": common.versions(), "commit": common.environment()["commit"]}
    if folder is None:
        return program_steps.compiled(e, step), made
    text, facts = (pathlib.Path(folder, f"{name}.{end}") for end in ("hlo", "json"))
    if not text.exists():
        program = program_steps.compiled(e, step)
        text.parent.mkdir(parents=True, exist_ok=True)
        facts.write_text(json.dumps([program.memory, program.seconds, made]))
        text.write_text(program.text)
    memory, seconds, made = json.loads(facts.read_text())
    return program_steps.Program(text.read_text(), memory, seconds), made


def lines(result: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """The result for people; `before` is another one or empty."""
    parts = program_parts.table(result["an_image"], before.get("an_image", {}))
    formula = result.get("gflop_by_formula")
    of_formula = f", {formula} by the formula" if formula else ""
    explained = result.get("hbm_explain_gib")
    of_explain = f" (`deit-jax explain`: {explained})" if explained else ""
    products = sum(
        cost["gflop"]
        for part, cost in result["an_image"].items()
        if part != "all" and not part.startswith("augment")
    )
    exchanged = [
        f"{network} {part}: {sum(c['bytes'] for c in ops.values()) / 1e6:.1f} MB a step"
        for network, by_part in result["bytes_per_step"].items()
        for part, ops in by_part.items()
    ]
    return [
        f"{result['step']} step of {result['config']} for {result['target']}, "
        f"{result['rows_per_device']:g} images a device, attention {result['attention']}; "
        f"an image ({WHAT}):",
        parts,
        f"GFLOP an image in products, without augmentation's: {products:.3f}{of_formula}",
        f"memory of one device: {result['hbm_plan_gib']} GiB{of_explain}",
        f"compiled in {result['compile_s']} s",
        *exchanged,
        *(f"not in the design: {what}" for what in result["not_in_the_design"]),
    ]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--target", required=True, choices=program_targets.TARGETS)
    parser.add_argument("--step", choices=program_steps.STEPS, default="train")
    parser.add_argument("--output")
    parser.add_argument("--against")
    parser.add_argument("--keep")
    flags, rest = parser.parse_known_args(argv)
    overrides = config.split_overrides(rest)
    before = json.loads(pathlib.Path(flags.against).read_text()) if flags.against else {}
    target = program_targets.open_target(flags.target)
    with target.asked_for():
        resolved = schema.load(flags.config, overrides)
        mesh = sharding.make_mesh(target.devices, **resolved.mesh)
        e = program_steps.experiment(resolved, target.devices[0], mesh)
        words = [pathlib.Path(flags.config).name, flags.target, flags.step, *overrides]
        name = "-".join(words).replace("/", "_")
        program, made = _kept(flags.keep, name, e, flags.step)
    about = {"config": flags.config, "target": flags.target, "step": flags.step}
    about |= {"overrides": overrides}
    result = report(e, program, target, about | made)
    print("\n".join(lines(result, before)))
    if flags.output:
        common.write(result, flags.output)
    return 1 if result["not_in_the_design"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
