"""make_augment as a whole: what it promises about keys, rows, devices, groups and options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import Supplied, make_augment, mix
from deit_jax.augment.normalize import normalize
from deit_jax.distributed import sharding
from deit_jax.errors import ConfigError

CLASSES = 10
SIDE = 24
# Mean 0 and deviation 1/255: the output is in levels.
LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}
OFF = {
    "crop": "resize",
    "hflip": 0.0,
    "auto_augment": None,
    "color_jitter": 0.0,
    "erasing_prob": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "smoothing": 0.0,
}


def make_batch(rows, side=40):
    draw = np.random.RandomState(0)
    size = draw.randint(side // 2, side + 1, (rows, 2)).astype(np.int32)
    canvas = draw.randint(0, 256, (rows, side, side, 3)).astype(np.uint8)
    valid = np.arange(side) < size[..., None]
    canvas *= (valid[:, 0, :, None] & valid[:, 1, None, :])[..., None]
    label = (np.arange(rows) % CLASSES).astype(np.int32)
    return {"canvas": canvas, "size": size, "label": label}


@functools.cache
def compiled(rows, repeats, mesh, options):
    """One jitted function per set of options: compiling is what these tests spend."""
    supplied = Supplied(SIDE, CLASSES, batch_size=rows, repeats=repeats, mesh=mesh)
    return jax.jit(make_augment(supplied, **dict(options)))


def run(batch, key=0, mesh=None, **options):
    rows = len(batch.get("canvas_index", batch["label"]))
    repeats = np.bincount(batch["canvas_index"]).max() if "canvas_index" in batch else 1
    augment = compiled(rows, int(repeats), mesh, tuple(sorted(options.items())))
    return jax.tree.map(np.asarray, augment(jax.random.key(key), batch))


def test_everything_off_only_normalizes():
    batch = make_batch(4, side=SIDE)
    batch["size"][:] = SIDE
    out = run(batch, **OFF)
    np.testing.assert_allclose(
        out["image"],
        normalize(batch["canvas"], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(out["target"], np.eye(CLASSES)[batch["label"]])


@pytest.mark.long
def test_the_published_recipe_on_one_device_and_on_eight(optimized):
    batch = make_batch(16)
    batch["canvas_index"] = (np.arange(32, dtype=np.int32) * 5) % 16
    alone = run(batch, mix_group=4)
    mesh = sharding.make_mesh(data=4, fsdp=2)
    shared = jax.device_put(batch, sharding.batch_sharding(mesh))
    together = run(shared, mix_group=4, mesh=mesh)
    for name in alone:
        np.testing.assert_array_equal(alone[name], together[name])

    assert alone["image"].shape == (32, SIDE, SIDE, 3) and alone["image"].dtype == np.float32
    assert alone["target"].shape == (32, CLASSES) and alone["target"].dtype == np.float32
    np.testing.assert_array_equal(alone["label"], batch["label"][batch["canvas_index"]])
    np.testing.assert_allclose(alone["target"].sum(1), 1.0, rtol=1e-6)
    assert np.isfinite(alone["image"]).all()
    np.testing.assert_array_equal(run(batch, mix_group=4)["image"], alone["image"])
    assert (run(batch, key=1, mix_group=4)["image"] != alone["image"]).any((1, 2, 3)).all()


def test_rows_differ_and_do_not_depend_on_the_rest_of_the_batch():
    batch = make_batch(2)
    unmixed = {"mixup": 0.0, "cutmix": 0.0, "auto_augment": "rand-m9-n1-p1-inc1"}
    images = run(batch | {"canvas_index": np.zeros(16, np.int32)}, **unmixed)["image"]
    assert len(np.unique(images.reshape(16, -1), axis=0)) == 16
    few = run(batch | {"canvas_index": np.array([0, 0, 0, 0, 1], np.int32)}, **unmixed)["image"]
    np.testing.assert_array_equal(few[:4], images[:4])


def test_deit_3_options_on_one_device_and_on_eight():
    batch = make_batch(16)
    options = {
        "auto_augment": None,
        "three_augment": True,
        "crop": "src",
        "mixup": 0.0,
        "mix_group": 4,
        "erasing_prob": 0.0,
        "mix_mode": "elem",
    }
    alone = run(batch, **options)
    mesh = sharding.make_mesh(data=8)
    shared = jax.device_put(batch, sharding.batch_sharding(mesh))
    together = run(shared, **options, mesh=mesh)
    for name in ("image", "label"):
        np.testing.assert_array_equal(alone[name], together[name])
    # Sums of a few weights, which two programs may add up in another order.
    np.testing.assert_allclose(alone["target"], together["target"], rtol=1e-6)
    assert np.isfinite(alone["image"]).all()


def test_canvas_index_names_the_canvas_of_every_row():
    batch = make_batch(6)
    index = np.array([5, 0, 0, 3, 1, 1, 2, 5], np.int32)
    options = OFF | {"crop": "center"}
    out = run(batch | {"canvas_index": index}, **options)
    np.testing.assert_array_equal(out["image"], run(batch, **options)["image"][index])
    np.testing.assert_array_equal(out["label"], batch["label"][index])


def test_flips_happen_and_are_half():
    batch = make_batch(8, side=SIDE)
    batch["size"][:] = SIDE
    batch = {name: np.concatenate([value] * 8) for name, value in batch.items()}
    out = run(batch, **(OFF | LEVELS | {"hflip": 0.5}))["image"]
    same = np.isclose(out, batch["canvas"], atol=1e-2).all((1, 2, 3))
    mirrored = np.isclose(out, batch["canvas"][:, :, ::-1], atol=1e-2).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 16 < mirrored.sum() < 48
    upside = run(batch, **(OFF | LEVELS | {"vflip": 1.0}))["image"]
    np.testing.assert_allclose(upside, batch["canvas"][:, ::-1], atol=1e-2)


def constant_rows(rows):
    """One color per image, so that a mixed pixel tells its weights."""
    batch = make_batch(rows, side=SIDE)
    batch["size"][:] = SIDE
    batch["canvas"][:] = (np.arange(rows) * 7)[:, None, None, None]
    batch["label"] = (np.arange(rows) % CLASSES).astype(np.int32)
    return batch


def own_weight(out, rows, group):
    """Mean share of a row's own color in its image, and the row it is mixed with."""
    partner = np.arange(rows).reshape(-1, group)[:, ::-1].ravel()
    level, other = np.arange(rows) * 7.0, partner * 7.0
    return (out["image"].mean((1, 2, 3)) - other) / (level - other), partner


@pytest.mark.parametrize(
    "mode,distinct,kind",
    [
        ("batch", 5, {"mixup": 0.8, "cutmix": 1.0}),
        ("pair", 10, {"cutmix": 1.0}),
        ("elem", 20, {"mixup": 1.0}),
    ],
)
def test_target_weights_are_those_of_the_pixels(mode, distinct, kind):
    options = OFF | LEVELS | kind | {"mix_mode": mode, "mix_group": 4}
    out = run(constant_rows(20), key=3, **options)
    weight, partner = own_weight(out, 20, 4)
    label = np.arange(20) % CLASSES
    expected = weight[:, None] * np.eye(CLASSES)[label]
    expected += (1 - weight[:, None]) * np.eye(CLASSES)[label[partner]]
    np.testing.assert_allclose(out["target"], expected, atol=2e-5)
    # A box may be empty, and then two groups agree in having a weight of 1.
    assert distinct - 4 <= len(np.unique(np.round(weight, 4))) <= distinct
    # Mixup weighs every pixel alike; CutMix takes a pixel from one or the other.
    spread = out["image"].std((1, 2, 3)) / np.abs(partner * 7.0 - np.arange(20) * 7.0)
    if "cutmix" not in kind:
        assert spread.max() < 1e-4
    elif "mixup" not in kind:
        np.testing.assert_allclose(spread, np.sqrt(np.clip(weight * (1 - weight), 0, 1)), atol=1e-3)


def test_smoothing_gives_the_published_target():
    target = run(make_batch(4), **(OFF | {"smoothing": 0.1}))["target"]
    np.testing.assert_allclose(np.sort(target, axis=1)[:, -2:], [[0.01, 0.91]] * 4, rtol=1e-6)


def test_erasing_replaces_a_share_of_the_images_by_noise():
    batch = constant_rows(80)
    out = run(batch, **(OFF | LEVELS | {"erasing_prob": 0.25}))["image"]
    erased = np.abs(out - (np.arange(80) * 7 % 256)[:, None, None, None]).max((1, 2, 3)) > 1e-3
    assert 8 < erased.sum() < 35
    noise = out[np.abs(out - (np.arange(80) * 7 % 256)[:, None, None, None]) > 1e-3]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    for mode, colors in (("rand", 3), ("const", 1)):
        out = run(batch, **(OFF | LEVELS | {"erasing_prob": 1.0, "erasing_mode": mode}))["image"][9]
        assert len(np.unique(out[np.abs(out - 63) > 1e-3])) == colors


MIX = {"mixup": 0.8, "cutmix": 1.0, "cutmix_minmax": None, "mix_prob": 1.0}


def mix_group(batch_size, repeats, **options):
    defaults = MIX | {"mix_group": None, "mix_group_limit": 64}
    return mix.resolve_mix_group(batch_size, repeats, **defaults | options)


@pytest.mark.parametrize(
    "batch,repeats,expected",
    [(1024, 3, 64), (256, 1, 64), (64, 1, 64), (64, 3, 16), (96, 1, 48), (6, 3, 2), (1000, 3, 50)],
)
def test_mix_group_is_chosen(batch, repeats, expected):
    assert mix_group(batch, repeats) == expected


def test_mix_group_is_checked():
    assert mix_group(1024, 3, mix_group=128) == 128
    # Fewer groups than copies, as on so few processes of the official code.
    assert (mix_group(512, 3, mix_group=256), mix_group(4, 3)) == (256, 2)
    with pytest.raises(ConfigError, match=r"known: \[2, 4, 6, 8, 12, 16, 24, 48\]"):
        mix_group(48, 3, mix_group=32)
    with pytest.raises(ConfigError, match="even"):
        mix_group(48, 1, mix_group=3)
    with pytest.raises(ConfigError, match="mixup=0"):
        mix_group(9, 1)
    with pytest.raises(ConfigError, match="must be at least 2, not 1"):
        mix_group(48, 1, mix_group_limit=1)
    for off in ({"mixup": 0.0, "cutmix": 0.0}, {"mix_prob": 0.0}):
        assert mix_group(9, 1, **off) is None
    augment = make_augment(Supplied(SIDE, CLASSES, batch_size=8), mix_group=4)
    with pytest.raises(ValueError, match="6 rows is not a multiple of the mix group 4"):
        jax.eval_shape(augment, jax.random.key(0), make_batch(6))


@pytest.mark.parametrize(
    "wrong,names",
    [
        ({"crop": "rcc"}, "rrc"),
        ({"scale": (0.5, 0.1)}, "scale"),
        ({"ratio": (0.0, 1.0)}, "ratio"),
        ({"hflip": 1.5}, "hflip"),
        ({"erasing_mode": "pixels"}, "pixel"),
        ({"erasing_prob": -0.1}, "erasing_prob"),
        ({"erasing_count": 0}, "erasing_prob=0"),
        ({"mix_mode": "elems"}, "elem"),
        ({"mixup": -1.0}, "mixup"),
        ({"switch_prob": 2.0}, "switch_prob"),
        ({"cutmix_minmax": (0.8, 0.2)}, "cutmix_minmax"),
        ({"mix_group": 3}, "mix_group 3 is not an even divisor"),
        ({"crop": "src", "erasing_count": 0}, "erasing_count must be at least 1"),
        ({"operations": ("Invrt",)}, "Invert"),
        ({"operations": ()}, "at least one"),
        ({"operations": ("Invert",), "auto_augment": "rand-tweights"}, "draws 2 of 1"),
        ({"auto_augment": "augmix-m3"}, "rand-m9"),
        ({"three_augment": True}, "auto_augment=None"),
        ({"color_jitter": -0.5}, "color_jitter"),
        ({"smoothing": 1.2}, "smoothing"),
        ({"std": (0.2, 0.0, 0.2)}, "std"),
        ({"matmul": "float8"}, "float32"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, names):
    with pytest.raises(ConfigError, match=names):
        make_augment(Supplied(SIDE, CLASSES, batch_size=8), **wrong)


@pytest.mark.parametrize(
    "wrong", [{"mixupp": 0.0}, {"crop": "src", "scale": (0.1, 1.0)}, {"image_size": 24}]
)
def test_options_that_nothing_takes_are_refused(wrong):
    with pytest.raises(TypeError, match=list(wrong)[-1]):
        make_augment(Supplied(SIDE, CLASSES, batch_size=8), **wrong)


def test_cutmix_boxes_are_the_published_ones():
    keys = jax.random.split(jax.random.key(0), 2000)
    options = MIX | {"mixup": 0.0, "switch_prob": 0.5}
    drawn = jax.jit(jax.vmap(lambda key: mix.draw_mix(key, 30, 41, **options)))(keys)
    top, bottom, left, right = np.asarray(drawn.box).T
    assert (top >= 0).all() and (bottom <= 30).all() and (left >= 0).all() and (right <= 41).all()
    area = (bottom - top) * (right - left)
    np.testing.assert_allclose(drawn.lam, 1 - area / (30 * 41), rtol=1e-5, atol=1e-6)
    # Sides of boxes that no border clips are even: twice int(side * sqrt(1 - lam)) // 2.
    free = (top > 0) & (bottom < 30)
    assert free.any() and ((bottom - top)[free] % 2 == 0).all()


def words_of(draws):
    """uint32 [n, draws] from which `random_bits.integer` draws what numpy drew."""
    low, high, drawn = np.moveaxis(draws.astype(np.float64), -1, 0)
    return ((drawn - low + 0.5) / (high - low) * 2**24).astype(np.uint32) << 8


@pytest.mark.parametrize("height, width", [(224, 224), (30, 41), (9, 9), (160, 96)])
def test_cutmix_boxes_equal_those_of_the_published_runs_timm(vectors, height, width):
    stored = np.load(vectors / "mix_boxes.npz")
    name = f"box_{height}_{width}"
    box = jax.vmap(lambda word, lam: mix._cut_box(word, lam, height, width))
    found = box(words_of(stored[f"{name}_draws"]), stored[f"{name}_lam"])
    np.testing.assert_array_equal(found, stored[name])


@pytest.mark.parametrize("side", [224, 30, 9, 96])
def test_cutmix_minmax_boxes_equal_those_of_the_published_runs_timm(vectors, side):
    stored = np.load(vectors / "mix_boxes.npz")
    name = f"minmax_{side}"
    limits = tuple(stored[f"{name}_limits"].tolist())
    box = jax.vmap(lambda word: mix._cut_box_minmax(word, limits, side, side))
    np.testing.assert_array_equal(box(words_of(stored[f"{name}_draws"])), stored[name])


@pytest.mark.parametrize("side, minmax", [(224, (0.2, 0.8)), (30, (0.1, 1.0)), (9, (0.3, 0.7))])
def test_boxes_between_two_shares_are_those_of_the_published_runs_timm(side, minmax):
    """timm 0.3.2: randint(low, high) and randint(0, side - length), never the last of either."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    options = MIX | {"mixup": 0.0, "cutmix_minmax": minmax, "switch_prob": 0.5}
    drawn = jax.jit(jax.vmap(lambda key: mix.draw_mix(key, side, side, **options)))(keys)
    top, bottom, left, right = np.asarray(drawn.box).T
    low, high = (int(side * share) for share in minmax)
    for start, end in ((top, bottom), (left, right)):
        length = end - start
        assert (length.min(), length.max(), start.min(), end.max()) == (low, high - 1, 0, side - 1)
        short = length == low
        if side == 9:  # few enough to see them all, equally often
            counts = np.bincount(start[short], minlength=side - low)
            assert len(counts) == side - low and counts.min() > 0.7 * counts.max()


def test_no_operation_runs_on_every_image():
    """The routed operations see chunks, not the batch: none of their shapes has all rows."""
    rows = 256
    augment = make_augment(Supplied(16, 2, batch_size=rows), mix_group=64, matmul="float32")
    batch = {
        "canvas": jax.ShapeDtypeStruct((rows, 16, 16, 3), jnp.uint8),
        "size": jax.ShapeDtypeStruct((rows, 2), jnp.int32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
    text = str(jax.make_jaxpr(augment)(jax.random.key(0), batch))
    # 4/30, 1/30, 1/30 and 2/30 of 256 rows, with headroom.
    for chunk in (48, 16, 28):
        assert f"u8[{chunk},16,16,3]" in text
    assert f"u32[{rows},16,19]" not in text and "u32[48,16,19]" in text
