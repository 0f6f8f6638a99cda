"""What the step of every shipped ImageNet recipe exchanges on TPU pods that are not there.

    python benchmarks/program_list.py [--config=configs/deit.py:ti] [--target=v5e-256]

Every training step, at its full size, is given to the TPU's compiler, which is stopped as soon as
it has cut the program for the chips: from then on it is decided what is exchanged, and what takes
minutes comes later. Collectives are those of that moment: not yet combined, sums not yet in
another type, and what spans slices (`dcn`) not yet done in stages. `programs.py` compiles in full.

Results are added to `--output`; what is in it is not made again.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
import traceback

import common
import program_targets

if __name__ == "__main__":
    program_targets.prepare()

import hlo
import jax
import program_exchange
import program_steps

from deit_jax.distributed import sharding
from deit_jax.train import schema

FILES = "deit deit_distilled deit3 mmpretrain teachers finetune ablations".split()
TARGETS = ("v5e-256", "v4-128", "2xv5e-16")
OUTPUT = common.RESULTS / "programs" / "collectives.json"
# The passes after which the dump of the program is read.
PASSES = "xla-partitioner-optimizations"
LIMIT_S = 1200


def shipped() -> list[str]:
    """All recipes on ImageNet, as FILE:VARIANT."""
    found = []
    for name in FILES:
        path = pathlib.Path("configs", f"{name}.py")
        names: dict = {}
        exec(compile((common.ROOT / path).read_text(), str(path), "exec"), names)
        found += [f"{path}:{variant}" for variant in names["VARIANTS"]]
    return found


def partitioned(lowered: jax.stages.Lowered) -> str:
    """The program of one device as soon as the compiler has made it; the compiler goes on."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": PASSES}
        options |= {"xla_dump_hlo_as_text": True}
        threading.Thread(target=lowered.compile, args=(options,), daemon=True).start()
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            for path in pathlib.Path(folder).rglob(f"*after_{PASSES}.*.txt"):
                text = path.read_text()
                if "\nENTRY " in text and text.endswith("}\n\n"):
                    return text
            time.sleep(0.2)
    raise TimeoutError(f"the compiler has not cut the program within {LIMIT_S} s")


def row(spec: str, target_name: str) -> dict:
    """What one step exchanges."""
    target = program_targets.open_target(target_name)
    with target.asked_for():
        resolved = schema.load(str(common.ROOT / spec))
        mesh = sharding.make_mesh(target.devices, **resolved.mesh)
        e = program_steps.experiment(resolved, target.devices[0], mesh)
        function, arguments = program_steps.STEPS["train"](e)
        text = partitioned(function.lower(*arguments))
    slices = sharding.slice_count(target.devices)
    found = hlo.collectives(text, mesh.size // slices if slices > 1 else None)
    result = {
        "config": spec,
        "target": target_name,
        "rows_per_device": resolved.train.batch_size / mesh.size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(e.recipe.params)),
        "looped_collectives": sum(collective.looped for collective in found),
    }
    return result | program_exchange.exchanged(e, found)


def in_a_process(spec: str, target: str) -> dict | None:
    """`row`, in a process that ends with it, the compiler in its middle; None if it failed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(write, "w") as pipe:
                pipe.write(json.dumps(row(spec, target)))
        except BaseException:  # noqa: BLE001 - told, and the next one is made
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", nargs="+", default=shipped())
    parser.add_argument("--target", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    flags = parser.parse_args(argv)
    rows = json.loads(flags.output.read_text())["rows"] if flags.output.exists() else []
    known = {(made["config"], made["target"]) for made in rows}
    failed = 0
    for target in flags.target:
        for spec in flags.config:
            if (spec, target) in known:
                continue
            start = time.monotonic()
            made = in_a_process(spec, target)
            failed += made is None or bool(made["not_in_the_design"])
            if made:
                rows.append(made)
                common.write({"versions": common.versions(), "rows": rows}, flags.output)
            strange = "failed" if made is None else "; ".join(made["not_in_the_design"])
            print(f"{target} {spec}: {time.monotonic() - start:.0f} s {strange}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
