"""Repeated augmentation on several devices: where crops are made and where they go."""

import re

import jax
import numpy as np

from deit_jax import data
from deit_jax.augment import Supplied, make_augment
from deit_jax.distributed import sharding

ROWS, REPEATS, GROUP, SIDE = 64, 3, 16, 24
OPTIONS = {"auto_augment": None, "color_jitter": 0.0, "erasing_prob": 0.0, "mix_group": GROUP}


def test_crops_go_to_the_device_of_their_row_alone():
    """The batch is that of gathering all crops on every device, to the bit."""
    mesh = sharding.make_mesh(data=4, fsdp=2)
    draw, n = np.random.RandomState(0), data.canvas_count(ROWS, REPEATS, mesh.size)
    batch = {
        "canvas": draw.randint(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8),
        "size": draw.randint(SIDE // 2, SIDE + 1, (n, 2)).astype(np.int32),
        "label": np.arange(n, dtype=np.int32) % 10,
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    orders = data.canvas_orders(ROWS, REPEATS, GROUP)
    gathered = Supplied(SIDE, 10, batch_size=ROWS, repeats=REPEATS, mesh=mesh)
    programs, key = [], jax.random.key(0)
    for supplied in (gathered, gathered._replace(canvas_orders=orders)):
        augment = jax.jit(make_augment(supplied, **OPTIONS))
        programs.append(augment.lower(key, batch | {"canvas_index": orders[0]}).compile())
    for order in orders:
        every, own = (run(key, batch | {"canvas_index": order}) for run in programs)
        for name in every:
            np.testing.assert_array_equal(every[name], own[name])
    # Rows of pixels that a device receives in each exchange.
    pattern = rf"u8\[(\d+),{SIDE},{SIDE},3\]\S* (all-gather|all-reduce|collective-permute)\("
    whole, parts = (re.findall(pattern, program.as_text()) for program in programs)
    assert [int(rows) for rows, _ in whole] == [ROWS]
    assert {op for _, op in parts} == {"collective-permute"}
    assert sum(int(rows) for rows, _ in parts) < ROWS / 4
    unknown = programs[1](key, batch | {"canvas_index": orders[0][::-1]})
    assert np.isnan(unknown["image"]).all()
