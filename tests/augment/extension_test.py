"""A stage, an operation and a crop are added by one function and one line in a table each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import builders
from deit_jax.augment import Supplied, crop, describe, make_augment, operations, pipeline
from deit_jax.augment import random_bits as bits
from deit_jax.augment.crop import box_axes
from deit_jax.errors import ConfigError

SIDE = 16
ROWS = 8
SUPPLIED = Supplied(SIDE, num_classes=4, batch_size=ROWS)
OFF = {"auto_augment": None, "color_jitter": 0.0, "erasing_prob": 0.0, "mixup": 0.0, "cutmix": 0.0}


def make_grid_mask(supplied, *, grid_prob: float = 0.0, grid_size: int = 4):
    """Grid mask: squares of a regular grid are set to the mean."""
    if grid_prob == 0:
        return None

    def masked(draw, image):
        words = bits.words(draw("grid_mask"), 2)
        start = bits.integer(words[:, 0], jnp.int32(grid_size - 1))[:, None]
        line = (jnp.arange(supplied.image_size)[None] + start) % grid_size < grid_size // 2
        hidden = line[:, :, None, None] & line[:, None, :, None]
        hidden &= bits.chance(words[:, 1], grid_prob)[:, None, None, None]
        return jnp.where(hidden, 0.0, image)

    return masked


def cutout(pixels, value, *, fill):
    """Cutout of the upper left corner."""
    corner = jnp.arange(SIDE)[None, :] < value[:, None] * SIDE
    hidden = corner[:, :, None, None] & corner[:, None, :, None]
    return jnp.where(hidden, jnp.array(fill, jnp.uint8), pixels)


def corner_crop(image_size, *, share: float = 0.5):
    """The upper left corner."""

    def axes(keys, size):
        side = jnp.maximum((share * size).astype(jnp.int32), 1)
        return box_axes(jnp.concatenate([jnp.zeros_like(size), side], axis=1), image_size)

    return axes


@pytest.fixture(scope="module")
def batch():
    draw = np.random.RandomState(0)
    return {
        "canvas": draw.randint(1, 256, (ROWS, SIDE, SIDE, 3)).astype(np.uint8),
        "size": np.full((ROWS, 2), SIDE, np.int32),
        "label": np.arange(ROWS, dtype=np.int32) % 4,
    }


def run(batch, **options):
    augment = jax.jit(make_augment(SUPPLIED, **options))
    return jax.tree.map(np.asarray, augment(jax.random.key(3), batch))


def program(batch, **options):
    """The traced program: the same text is the same draws and the same pixels."""
    return str(jax.make_jaxpr(make_augment(SUPPLIED, **options))(jax.random.key(3), batch))


def test_a_stage_is_a_factory_and_a_line(batch, monkeypatch):
    recipe = {"auto_augment": None, "color_jitter": 0.0, "erasing_prob": 1.0}
    before = program(batch)
    with pytest.raises(TypeError, match="grid_prob"):
        make_augment(SUPPLIED, grid_prob=0.5)

    monkeypatch.setitem(pipeline.IMAGE_STAGES, "grid_mask", make_grid_mask)
    assert {"grid_prob", "grid_size"} <= builders.options(make_augment, {}).keys()
    # Off, it costs nothing and changes no draw.
    assert program(batch) == before
    assert "grid_mask" not in [stage.name for stage in describe(SUPPLIED, {})]
    # On, it hides some pixels; the others are those of the recipe without it.
    unmixed = recipe | {"mixup": 0.0, "cutmix": 0.0}
    plain = run(batch, **unmixed)["image"]
    masked = run(batch, **unmixed, grid_prob=0.5, grid_size=8)["image"]
    hidden = (masked == 0).all(-1)
    np.testing.assert_array_equal(masked[~hidden], plain[~hidden])
    assert set(hidden.mean((1, 2))) == {0.0, 0.25}
    names = [stage.name for stage in describe(SUPPLIED, {"grid_prob": 0.5})]
    assert names == ["crop", "color", "normalize", "erasing", "grid_mask", "target", "mix"]
    stage = describe(SUPPLIED, {"grid_prob": 0.5})[4]
    assert stage.texts == ["Grid mask: squares of a regular grid are set to the mean"]
    assert stage.options == {"grid_prob": 0.5, "grid_size": 4}


@pytest.mark.parametrize("table", [pipeline.PIXEL_STAGES, pipeline.BATCH_STAGES])
def test_stages_of_the_other_tables_run_where_they_say(table, batch, monkeypatch):
    seen = {}

    def make_spy(supplied, *, spy: bool = False):
        def stage(draw, *arrays):
            seen["dtype"], seen["words"] = arrays[0].dtype, bits.named(draw("spy"), "spy").shape
            return arrays[0] if len(arrays) == 1 else arrays

        return stage if spy else None

    monkeypatch.setitem(table, "spy", make_spy)
    program(batch, **OFF, spy=True)
    on_batch = table is pipeline.BATCH_STAGES
    assert seen == {
        "dtype": jnp.float32 if on_batch else jnp.uint8,
        "words": () if on_batch else (ROWS,),
    }


def test_names_have_draws_of_their_own():
    key = jax.random.key(0)
    names = [*(name for name in bits.NUMBERS if name != "mix"), "grid_mask", "cut_out"]
    drawn = {name: int(jax.random.bits(bits.named(key, name))) for name in names}
    assert len(set(drawn.values())) == len(names)
    rows = jax.random.split(key, 3)
    for row, own in zip(rows, bits.named(rows, "grid_mask"), strict=True):
        assert own == bits.named(row, "grid_mask")
    # Part of the identity of every run so far.
    numbers = {"crop": 0, "flip": 1, "erasing": 2, "operations": 3, "color_jitter": 4}
    assert bits.NUMBERS == numbers | {"mix": None}
    for name, number in numbers.items():
        assert bits.named(key, name) == jax.random.fold_in(key, number)
    assert bits.named(key, "mix") == key


def test_an_operation_is_a_function_and_a_line(batch, monkeypatch):
    policies = ("rand-m9-mstd0.5-inc1", "rand-m6-n3-tweights", "v0")
    before = [program(batch, **OFF | {"auto_augment": name}) for name in policies]
    halves = operations.Operation(lambda magnitude: magnitude.level / 2, pixels=cutout)
    monkeypatch.setitem(operations.OPERATIONS, "Cutout", halves)
    assert [program(batch, **OFF | {"auto_augment": name}) for name in policies] == before

    always = OFF | {"crop": "resize", "hflip": 0.0, "auto_augment": "rand-m10-n1-p1"}
    levels = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    image = run(batch, **always, **levels, operations=("Cutout",))["image"]
    expected = batch["canvas"].copy()
    expected[:, : SIDE // 2, : SIDE // 2] = 0
    np.testing.assert_allclose(image, expected, atol=1e-2)
    mixed = run(batch, **always, **levels, operations=("Invert", "Cutout"))["image"]
    inverted = np.isclose(mixed, 255.0 - batch["canvas"], atol=1e-2).all((1, 2, 3))
    cut = np.isclose(mixed, expected, atol=1e-2).all((1, 2, 3))
    assert (inverted ^ cut).all() and inverted.any() and cut.any()

    with pytest.raises(ConfigError, match="no weight for 'Cutout'"):
        make_augment(
            SUPPLIED, auto_augment="rand-tweights", operations=("Rotate", "Cutout", "Invert")
        )


def test_operations_are_an_option_of_rand_policies_alone():
    known = builders.options(make_augment, {"auto_augment": "rand-m9"})
    assert known["operations"].default == operations.RAND_AUGMENT_OPERATIONS
    for other in ("original-mstd0.5", "", None):
        assert "operations" not in builders.options(make_augment, {"auto_augment": other})


def test_a_crop_is_a_function_and_a_line(batch, monkeypatch):
    monkeypatch.setitem(crop.CROPS, "corner", corner_crop)
    assert "share" not in builders.options(make_augment, {})
    assert {"share"} == builders.options(make_augment, {"crop": "corner"}).keys() - (
        builders.options(make_augment, {"crop": "src"}).keys()
    )
    levels = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3, "hflip": 0.0}
    flat = batch | {"canvas": batch["canvas"] * 0 + 7}
    flat["canvas"][:, SIDE // 2 :, :] = flat["canvas"][:, :, SIDE // 2 :] = 200
    image = run(flat, **OFF, **levels, crop="corner", share=0.5)["image"]
    np.testing.assert_allclose(image, 7.0, atol=1e-2)
    texts = describe(SUPPLIED, {"crop": "corner"})[0].texts
    assert texts[1] == "The upper left corner"
