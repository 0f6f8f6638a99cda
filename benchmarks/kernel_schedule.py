"""Cycles of this library's own TPU kernels, which the compiler's estimate leaves out.

A kernel is compiled alone, in a process of its own, and its final schedule read: the bundles of
instructions of one grid step, of which a TPU's core starts one a cycle when nothing waits for
memory, times the grid steps. Of a kernel with a loop the loop's body counts as often as it runs,
and so does what is around it: an upper figure.
"""

import hashlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import common
import jax
import jax.numpy as jnp
import program_targets

from deit_jax.models import fused_attention

CACHE = common.ROOT / "benchmarks" / "results" / "programs" / "kernels.json"
# By the name of the kernel in a program: a function of its operands that runs it.
KERNELS = {
    "forward_kernel": lambda *x: fused_attention.forward_rows(*x, interpret=False),
    "backward_kernel": lambda *x: fused_attention.backward_rows(*x, interpret=False),
}
_TOTAL = re.compile(r"total scheduled bundles:\s+(\d+)")


def cycles(target: str, kernel: str, operands: Any) -> float:
    """Cycles of a kernel on operands, each (dtype, shape), on a chip of a target.

    Compiled once and kept in `CACHE`, until the kernels' source changes.
    """
    source = pathlib.Path(fused_attention.__file__).read_bytes()
    case = {"target": target, "kernel": kernel, "operands": operands}
    words = [f"{dtype}{list(shape)}" for dtype, shape in operands]
    name = " ".join([target.split("-")[0].split("x")[-1], kernel, *words])
    known = json.loads(CACHE.read_text()) if CACHE.exists() else {}
    digest = hashlib.sha256(source).hexdigest()[:12]
    if known.get(name, {}).get("source") != digest:
        known[name] = _compiled_alone(case) | {"source": digest}
        common.write(dict(sorted(known.items())), str(CACHE))
    return known[name]["bundles"] * known[name]["grid_steps"]


def _compiled_alone(case: dict) -> dict[str, int]:
    """Bundles of a grid step, and grid steps."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        command = [sys.executable, __file__, json.dumps(case)]
        environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
        done = subprocess.run(command, env=environment, cwd=folder, stdout=subprocess.PIPE)
        if done.returncode:
            raise RuntimeError(f"{case['kernel']} did not compile for {case['target']}")
        facts = json.loads(done.stdout.splitlines()[-1])
        (found,) = pathlib.Path(folder).glob(
            f"*-{case['kernel']}*schedule-analysis_final_bundles.txt"
        )
        total = _TOTAL.search(found.read_text())
        assert total, found
        return {"bundles": int(total[1]) * facts["loops"], "grid_steps": facts["grid_steps"]}


def _compile(case: dict) -> dict[str, int]:
    """Compiles a kernel; grid steps, and how often its longest loop runs in one."""
    target = program_targets.open_target(case["target"])
    placed = jax.sharding.SingleDeviceSharding(target.devices[0])
    dtypes = {"bf16": jnp.bfloat16, "f32": jnp.float32}
    operands = [
        jax.ShapeDtypeStruct(shape, dtypes[dtype], sharding=placed)
        for dtype, shape in case["operands"]
    ]
    function = KERNELS[case["kernel"]]
    calls = [e for e in jax.make_jaxpr(function)(*operands).eqns if "grid_mapping" in e.params]
    (call,) = calls
    grid = call.params["grid_mapping"].grid
    lengths = [e.params["length"] for e in call.params["jaxpr"].eqns if "length" in e.params]
    jax.jit(function).lower(*operands).compile()
    return {"grid_steps": math.prod(grid), "loops": max(lengths, default=1)}


if __name__ == "__main__":
    program_targets.prepare()
    print(json.dumps(_compile(json.loads(sys.argv[1]))))
