"""What a step exchanges between devices, by part of the design, and what no part explains.

gradients    sums over the devices: gradients, statistics of BatchNorm, metrics
parameters   leaves that mesh.fsdp cuts, whole for the product that needs them
crops        with repeated augmentation, the crops of a device's rows from where their photos are
mix          images and targets of the partners in mixup and CutMix
small        at most 2^16 numbers
"""

from collections.abc import Iterable
from typing import Any

import hlo
import jax

from deit_jax.distributed import sharding
from deit_jax.train import experiment as experiment_lib

CLASSES = 1000
SMALL = 2**16


def part_of_design(e: experiment_lib.Experiment, collective: hlo.Collective) -> str | None:
    """The part of the design that a collective belongs to (see above), None for none."""
    rows = -(-e.recipe.config.train.batch_size // e.mesh.size)
    image = e.recipe.image_size**2 * 3
    leaves = [leaf.size for leaf in jax.tree.leaves(e.recipe.params)]
    dtypes = {dtype for dtype, _ in collective.arrays}
    floats = dtypes <= {"f32", "bf16"}
    if collective.elements <= SMALL:
        return "small"
    if dtypes <= {"u8", "u32"}:
        # As bytes or four at a time; in each round fewer rows than a device has.
        sent = collective.op == "collective-permute" and e.recipe.config.input.repeats > 1
        return "crops" if sent and collective.nbytes <= rows * image else None
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
