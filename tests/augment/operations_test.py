"""The device's color and geometric operations against Pillow, timm and torchvision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.augment import color, geometry, operations, policies, random_bits, three_augment
from deit_jax.augment.routing import Route, apply_routes

FILL = (124, 116, 104)
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
NAMES = operations.RAND_AUGMENT_OPERATIONS
SPEC = policies.rand_augment("rand-m9-mstd0.5-inc1")
# timm's plain set and the one whose effect grows with the magnitude.
SETS = ({"increasing": False, "posterize": ""}, {"increasing": True, "posterize": "Increasing"})


def parse(text):
    (make,) = policies.chosen(text)
    return make(text)


def load(vectors, name):
    with np.load(vectors / f"augment_{name}.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def stored(vectors):
    return load(vectors, "operations")


@pytest.fixture(scope="module")
def layered(stored):
    """All stored operations done in one batch, so that every route has members of several kinds."""
    number, value = stored["fields"][:, 1].astype(np.int32), stored["fields"][:, 4]
    images = len(stored["source"])
    apply = jax.jit(
        lambda *args: operations.apply_layer(*args, names=NAMES, shares=SPEC.shares, fill=FILL)
    )
    # The stored images take turns, so that neighbours draw different things.
    pixels = np.concatenate([np.stack([x] * len(number)) for x in stored["source"]])
    out = apply(pixels, np.tile(number, images), np.tile(value, images).astype(np.float32))
    return (
        np.asarray(out).reshape(images, *stored["output"].shape[:1], *out.shape[1:]).swapaxes(0, 1)
    )


@pytest.mark.parametrize("name", NAMES)
def test_operation_equals_pillow(stored, layered, name):
    rows = stored["fields"][:, 1] == NAMES.index(name)
    assert rows.any()
    difference = np.abs(layered[rows].astype(int) - stored["output"][rows])
    if name in GEOMETRIC:
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-4
    else:
        assert difference.max() == 0


def test_levels_become_timms_arguments(stored):
    increasing, number, level, negate, value = stored["fields"].T
    for kind in (0, 1):
        rows = increasing >= kind
        got = operations.argument(
            NAMES,
            jnp.int32(number[rows]),
            jnp.float32(level[rows]),
            negate[rows] == 1,
            **SETS[kind],
        )
        same_set = increasing[rows] == kind
        np.testing.assert_allclose(got[same_set], value[rows][same_set], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["original", "originalr", "v0", "v0r"])
def test_sub_policies_are_timms(vectors, name):
    number, prob, magnitude, *arguments = load(vectors, "autoaugment")[f"table_{name}"].T
    spec = parse(name)
    for got, expected in zip(spec.tables, (number, prob, magnitude), strict=True):
        np.testing.assert_array_equal(got.T, np.asarray(expected, got.dtype))
    for negate, expected in zip((False, True), arguments, strict=True):
        got = operations.argument(
            NAMES,
            jnp.int32(number),
            jnp.float32(magnitude),
            negate,
            increasing=False,
            posterize=spec.posterize,
        )
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
        # Bits, thresholds and addends are whole numbers that must not be one off.
        whole = np.isin(number, list(map(NAMES.index, ("Posterize", "Solarize", "SolarizeAdd"))))
        np.testing.assert_array_equal(np.asarray(got)[whole], expected[whole])


def test_a_policy_does_what_it_draws(stored):
    policy = parse("v0")
    pixels = np.concatenate([stored["source"]] * 20)
    keys = jax.random.split(jax.random.key(3), len(pixels))
    options = {"names": policy.operations, "shares": policy.shares, "fill": FILL}
    drawn = jax.jit(policy.draw)(keys)
    changed = jax.jit(lambda *x: operations.apply_layers(*x, **options))(pixels, *drawn)
    # Routes for every operation, also for those that the policy does not have.
    expected = pixels
    layer = jax.jit(
        lambda *x: operations.apply_layer(*x, names=NAMES, shares=SPEC.shares, fill=FILL)
    )
    for operation, value in zip(drawn[0].T, drawn[1].T, strict=True):
        expected = layer(expected, operation, value)
    np.testing.assert_array_equal(changed, expected)
    assert 0.5 < (np.asarray(changed) != pixels).any((1, 2, 3)).mean() < 1


@pytest.mark.parametrize("level", range(11))
def test_whole_levels_truncate_like_python(level):
    def value(operation, increasing):
        numbers = jnp.int32(NAMES.index(operation)), jnp.float32(level)
        return float(operations.argument(NAMES, *numbers, False, **SETS[increasing]))

    assert value("SolarizeAdd", True) == int(level / 10 * 110)
    assert value("Posterize", True) == 4 - int(level / 10 * 4)
    assert value("Posterize", False) == int(level / 10 * 4)
    assert value("Solarize", True) == 256 - int(level / 10 * 256)


def test_posterize_to_no_bits_is_black(stored):
    pixels = stored["source"]
    operation = jnp.full(len(pixels), NAMES.index("Posterize"))
    for bits in (0.0, -2.0):
        numbers = operations.pointwise_numbers(NAMES, operation, jnp.full(len(pixels), bits))
        assert not np.asarray(color.pointwise(pixels, numbers)).any()


def test_autocontrast_truncates_where_pillow_does(vectors):
    stored = load(vectors, "autocontrast")
    deficit = np.zeros((256, 256, 256), bool)
    deficit[stored["low"], stored["high"], stored["level"]] = True
    low, high = np.triu_indices(256, 1)
    table = jax.jit(color.autocontrast_table)
    level = np.arange(256)[None]
    for part in np.array_split(np.arange(len(low)), 4):
        lo, hi = low[part, None], high[part, None]
        counts = ((level == lo) | (level == hi)).astype(np.int32)
        expected = np.clip((level - lo) * 255 // (hi - lo) - deficit[lo, hi, level], 0, 255)
        np.testing.assert_array_equal(table(counts), expected)


def test_blend_rounds_like_pillow_for_every_pair_of_levels():
    factors = np.random.RandomState(0).uniform(0.1, 1.9, 24).astype(np.float32)
    base, pixel = np.meshgrid(np.arange(256), np.arange(256))
    blend = jax.jit(color.blend)
    for factor in factors:
        # NumPy rounds the product, then the sum, as Pillow's C code does.
        product = factor * (pixel - base).astype(np.float32)
        expected = np.clip(base.astype(np.float32) + product, 0, 255).astype(np.uint8)
        np.testing.assert_array_equal(blend(base, pixel, factor), expected)


def test_histogram_counts_levels(stored):
    pixels = stored["source"]
    expected = [[np.bincount(x[..., c].ravel(), minlength=256) for c in range(3)] for x in pixels]
    np.testing.assert_array_equal(color.histogram(pixels), expected)


def test_translations_beyond_the_image_leave_only_fill(stored):
    pixels = stored["source"]
    kind = jnp.array([geometry.TRANSLATE_X, geometry.TRANSLATE_Y, geometry.SHEAR_X])
    for amount in (5.0, -5.0, 40.0):
        moved = np.asarray(geometry.move_lines(pixels, kind, jnp.full(3, amount), fill=FILL))
        np.testing.assert_array_equal(moved[:2], np.broadcast_to(FILL, moved[:2].shape))


def test_pixels_of_a_turned_image_are_inside_where_float64_says_so():
    drawn = np.random.RandomState(0).uniform(-30, 30, 40)
    # The first three have a pixel that float32 coordinates put on the wrong side.
    degrees = np.float32([-19.514, 29.957, 16.872, 0.0, 90.0, -180.0, 1e-5, 271.3, *drawn])
    side = 224
    words = jax.jit(lambda degrees: geometry.turned_from(degrees, side, side))(degrees)

    def coordinates(dtype):
        angle = np.radians(degrees.astype(dtype))[:, None, None]
        center = np.arange(side, dtype=dtype) + dtype(0.5 - side / 2)
        x, y = center[None, None, :], center[None, :, None]
        cosine, sine = np.cos(angle), np.sin(angle)
        half = dtype(side / 2)
        return cosine * x - sine * y + half, cosine * y + sine * x + half

    wrong_in_float32 = 0
    for got, exact, single in zip(
        words, coordinates(np.float64), coordinates(np.float32), strict=True
    ):
        high = np.asarray(got.high)
        found = (high + np.asarray(got.low) / 2.0**18) / 2.0**19
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8)
        # At right angles coordinates lie on the border itself, or a float64 rounding beside it.
        clear = np.abs(exact - np.round(exact)) > 1e-8
        inside = (exact >= 0) & (exact < side)
        np.testing.assert_array_equal(((high >= 0) & (high < 2 * side << 18))[clear], inside[clear])
        wrong_in_float32 += (((single >= 0) & (single < side)) != inside)[clear].sum()
    assert wrong_in_float32 > 0


def test_images_too_large_for_the_coordinates_are_refused():
    with pytest.raises(ValueError, match="1024"):
        geometry.rotate(jnp.zeros((1, 1200, 1200, 3), jnp.uint8), jnp.ones(1), fill=FILL)


@pytest.mark.parametrize("members", [0, 1, 5, 12])
def test_every_member_is_served_however_many_there_are(members):
    pixels = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    chosen = np.isin(np.arange(12), np.random.RandomState(members).permutation(12)[:members])
    # A share of next to nothing makes the capacity one image per round.
    route = Route(
        jnp.asarray(chosen),
        1e-6,
        lambda x, add: x + add[:, None, None, None],
        (jnp.arange(100, 112, dtype=jnp.uint8),),
    )
    expected = np.where(chosen, np.arange(12) * 2 + 100, np.arange(12))
    np.testing.assert_array_equal(apply_routes(pixels, [route])[:, 0, 0, 0], expected)


def test_blur_equals_pillow(vectors):
    stored = load(vectors, "three")
    images, sigmas = len(stored["source"]), stored["sigma"]
    pixels = np.concatenate([stored["source"]] * len(sigmas))
    got = jax.jit(three_augment.gaussian_blur)(pixels, np.repeat(sigmas, images))
    difference = np.abs(
        np.asarray(got).reshape(stored["blurred"].shape).astype(int) - stored["blurred"]
    )
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_three_augment_does_one_of_three(vectors):
    stored = load(vectors, "three")
    one = stored["source"][0]
    keys = jax.random.split(jax.random.key(0), 60)
    got = np.asarray(jax.jit(three_augment.three_augment)(keys, np.stack([one] * 60)))
    gray = (got == stored["gray"][0]).all((1, 2, 3))
    solarized = (got == stored["solarized"][0]).all((1, 2, 3))
    blurred = ~gray & ~solarized
    assert min(gray.sum(), solarized.sum(), blurred.sum()) >= 8
    assert np.abs(got[blurred].astype(int).mean((1, 2)) - one.mean((0, 1))).max() < 1.5
    # The sigma is drawn for each image (only those next to 0.1 can be alike).
    assert len(np.unique(got[blurred].reshape(blurred.sum(), -1), axis=0)) >= 0.8 * blurred.sum()


def test_color_jitter_equals_torchvision(vectors):
    stored = load(vectors, "three")
    number_of = {0: color.BLACK, 1: color.MEAN, 2: color.GRAY}
    orders, images = stored["order"], len(stored["source"])
    bases = np.repeat([[number_of[i] for i in order] for order in orders], images, axis=0)
    factors = np.repeat([stored["factor"][order] for order in orders], images, axis=0)
    pixels = jnp.asarray(np.concatenate([stored["source"]] * len(orders)))
    for step in range(3):
        numbers = color.neutral(len(pixels))
        numbers = numbers._replace(base=jnp.asarray(bases[:, step]), factor=factors[:, step])
        pixels = color.pointwise(pixels, numbers)
    expected = stored["jittered"].reshape(pixels.shape)
    np.testing.assert_array_equal(pixels, expected)


def test_color_jitter_draws_every_order_and_the_whole_range(monkeypatch):
    seen = []
    monkeypatch.setattr(color, "pointwise", lambda pixels, numbers: seen.append(numbers) or pixels)
    monkeypatch.setattr(
        jax.lax,
        "scan",
        lambda f, init, xs: ([f(init, (xs[0][i], xs[1][i])) for i in range(3)], None),
    )
    keys = jax.random.split(jax.random.key(1), 600)
    three_augment.color_jitter(keys, np.zeros((600, 1, 1, 3), np.uint8), strength=0.3)
    orders = np.stack([numbers.base for numbers in seen], axis=1)
    factors = np.stack([numbers.factor for numbers in seen], axis=1)
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(kinds) == 6
    assert counts.min() > 60
    assert 0.7 <= factors.min() < 0.705 and 1.295 < factors.max() <= 1.3


def test_normal_draws_are_normal():
    from scipy import stats

    word = random_bits.words(jax.random.split(jax.random.key(2), 1), 20000)[0]
    sample = np.asarray(random_bits.normal(word))
    assert np.isfinite(sample).all()
    assert stats.kstest(sample, "norm").pvalue > 1e-3
    assert np.isfinite(random_bits.normal(jnp.array([0, 2**32 - 1], jnp.uint32))).all()


@pytest.mark.parametrize(
    "text", ["rand-m9.5", "rand-mstd", "rand-x3", "rand-p1.5", "rand-m9-t3a", "rand--m9"]
)
def test_unknown_policies_are_refused(text):
    with pytest.raises(ValueError, match="(?i)randaugment"):
        policies.rand_augment(text)


@pytest.mark.parametrize(
    "text,names",
    [
        ("orignal", "original"),
        ("augmix-m3", "rand-m9"),
        ("m9-mstd0.5", "rand-m9"),
        ("v0-mstd", "mstd0.5"),
        ("v0-m9", "mstd0.5"),
        ("original-mstdinf", "mstd0.5"),
    ],
)
def test_unknown_strings_are_refused_with_what_is_known(text, names):
    with pytest.raises(ValueError, match=names):
        parse(text)


def test_policy_strings_mean_what_timm_means():
    assert policies.rand_augment("rand-m9-mstd0.5-inc1") == policies.RandAugment(
        magnitude=9, magnitude_std=0.5, increasing=True
    )
    assert policies.rand_augment("rand") == policies.RandAugment()
    spec = policies.rand_augment("rand-m15-n3-p0.7-mstd101-mmax20-tweights")
    assert (spec.layers, spec.prob, spec.magnitude_std, spec.magnitude_max) == (3, 0.7, np.inf, 20)
    assert spec.weighted
