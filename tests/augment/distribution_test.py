"""What is drawn, against samples of timm's draws, by tests that see planted errors.

Each statistic of ours is compared with timm's (Kolmogorov-Smirnov for numbers,
chi-square for categories). The same comparison must refuse a slightly wrong draw.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deit_jax.augment import crop, erasing, mix, policies, random_bits
from deit_jax.augment.operations import RAND_AUGMENT_OPERATIONS as OPERATIONS

OURS = 12000
SIGNIFICANT = 1e-4


def parse(text):
    (make,) = policies.chosen(text)
    return make(text)


@pytest.fixture(scope="module")
def timm(vectors):
    arrays = {}
    for name in ("distributions", "autoaugment"):
        with np.load(vectors / f"augment_{name}.npz") as stored:
            arrays |= stored
    return arrays


@functools.cache
def words(count):
    return random_bits.words(jax.random.split(jax.random.key(5), OURS), count)


def categories_p(ours, theirs, kinds=32):
    """Chi-square p value of two samples of small whole numbers being of one distribution."""
    table = np.stack([np.bincount(np.int64(x).ravel(), minlength=kinds) for x in (ours, theirs)])
    if (table.sum(axis=0) > 0).sum() == 1:
        return 1.0
    return stats.chi2_contingency(table[:, table.any(axis=0)]).pvalue


def numbers_p(ours, theirs):
    # Rounded, or the last bit of a constant would count as a difference.
    ours, theirs = (np.round(np.asarray(x, np.float64).ravel(), 4) for x in (ours, theirs))
    return stats.ks_2samp(ours, theirs, method="asymp").pvalue


def geometric(operations, values):
    """Arguments of rotations, shears and translations, as signed magnitudes."""
    tenths = {"Rotate": 3.0, "ShearX": 0.03, "ShearY": 0.03}
    tenths |= {"TranslateXRel": 0.045, "TranslateYRel": 0.045}
    scale = np.array([tenths.get(name, 0.0) for name in (*OPERATIONS, "nothing")])
    scale = scale[np.int64(operations)]
    return values[scale > 0] / scale[scale > 0]


def policy_p(operations, values, theirs):
    """The least p value: operations drawn, arguments of each, pooled magnitudes and signs."""
    found = [categories_p(operations, theirs[..., 0])]
    for number in range(len(OPERATIONS)):
        mine, reference = values[operations == number], theirs[..., 1][theirs[..., 0] == number]
        if len(mine) and len(reference):
            found.append(numbers_p(mine, reference) * len(OPERATIONS))
    mine, reference = geometric(operations, values), geometric(theirs[..., 0], theirs[..., 1])
    found.append(numbers_p(np.abs(mine), np.abs(reference)))
    found.append(categories_p(mine > 0, reference > 0))
    return min(found)


def draw_policy(spec):
    keys = jax.random.split(jax.random.key(1), OURS)
    return (np.asarray(x) for x in jax.jit(spec.draw)(keys))


@pytest.mark.parametrize(
    "name,text",
    [
        ("policy_default", "rand-m9-mstd0.5-inc1"),
        ("policy_plain", "rand-m7-n3-p0.7"),
        ("policy_uniform", "rand-m8-mstd101-mmax12-inc1"),
        ("policy_weighted", "rand-m6-mstd1-tweights-inc1"),
    ],
)
def test_operations_and_arguments_are_drawn_as_timm_draws_them(timm, name, text):
    assert policy_p(*draw_policy(policies.rand_augment(text)), timm[name]) > SIGNIFICANT


@pytest.mark.parametrize(
    "planted",
    [{"prob": 0.45}, {"magnitude_std": 0.4}, {"magnitude_max": 9.6}, {"increasing": False}],
)
def test_a_wrong_policy_is_seen(timm, planted):
    spec = dataclasses.replace(policies.rand_augment("rand-m9-mstd0.5-inc1"), **planted)
    assert policy_p(*draw_policy(spec), timm["policy_default"]) < SIGNIFICANT


def test_a_biased_sign_is_seen(timm):
    operations, values = draw_policy(policies.rand_augment("rand-m9-mstd0.5-inc1"))
    unturned = (operations == OPERATIONS.index("Rotate")) & (np.arange(OURS) % 3 == 0)[:, None]
    biased = np.where(unturned, np.abs(values), values)
    assert policy_p(operations, biased, timm["policy_default"]) < SIGNIFICANT


def test_layers_are_independent():
    operations, _ = draw_policy(policies.rand_augment("rand-m9-mstd0.5-inc1"))
    table = np.zeros((16, 16))
    np.add.at(table, (operations[:, 0], operations[:, 1]), 1)
    assert stats.chi2_contingency(table).pvalue > SIGNIFICANT


def pairs_p(operations, values, theirs):
    """As `policy_p`, and which two operations come together."""
    pairs = 16 * operations[:, 0] + operations[:, 1], 16 * theirs[:, 0, 0] + theirs[:, 1, 0]
    return min(categories_p(*pairs, kinds=256), policy_p(operations, values, theirs))


AUTO_AUGMENT = [("drawn_original", "original"), ("drawn_v0r_noisy", "v0r-mstd0.5")]


@pytest.mark.parametrize("name,text", AUTO_AUGMENT)
def test_sub_policies_are_drawn_as_timm_draws_them(timm, name, text):
    assert pairs_p(*draw_policy(parse(text)), timm[name]) > SIGNIFICANT


def test_wrong_sub_policies_are_seen(timm):
    original, noisy = timm["drawn_original"], timm["drawn_v0r_noisy"]
    operations, values = draw_policy(parse("original"))
    assert pairs_p(operations, values, noisy) < SIGNIFICANT
    # The second operation of another image's sub-policy.
    shifted = [np.stack([x[:, 0], np.roll(x[:, 1], 1)], axis=1) for x in (operations, values)]
    assert policy_p(*shifted, original) > SIGNIFICANT
    assert pairs_p(*shifted, original) < SIGNIFICANT
    # One Equalize in fifteen left out.
    fewer = (operations == OPERATIONS.index("Equalize")) & (np.arange(OURS) % 15 == 0)[:, None]
    assert pairs_p(np.where(fewer, 15, operations), values, original) < SIGNIFICANT
    for wrong in ("v0-mstd0.5", "v0r-mstd1"):
        assert pairs_p(*draw_policy(parse(wrong)), noisy) < SIGNIFICANT


@pytest.mark.parametrize("text", ["rand-m7-n3-p0.7", "original", "v0"])
def test_routes_expect_what_is_drawn(text):
    policy = parse(text)
    operations, _ = draw_policy(policy)
    found = np.stack([(operations == i).mean(axis=0) for i in range(len(OPERATIONS))], axis=1)
    np.testing.assert_allclose(found, policy.shares, atol=5 * 0.5 / np.sqrt(OURS))


def draw_crops(size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    box = functools.partial(crop.random_resized_box, scale=scale, ratio=ratio)
    boxes = jax.jit(jax.vmap(box, in_axes=(0, None)))(words(22), jnp.array(size))
    return np.asarray(boxes, np.float64)


def crop_p(ours, theirs):
    def statistics(boxes):
        top, left, height, width = boxes.astype(np.float64).T
        return height * width, np.log(width / height), top, left

    return min(map(numbers_p, statistics(ours), statistics(theirs)))


@pytest.mark.parametrize("name,size", [("crop_usual", (375, 500)), ("crop_long", (60, 500))])
def test_crops_are_drawn_as_timm_draws_them(timm, name, size):
    boxes = draw_crops(size)
    assert crop_p(boxes, timm[name]) > SIGNIFICANT
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= size).all()


def test_wrong_crops_are_seen(timm):
    usual = timm["crop_usual"]
    assert crop_p(draw_crops((375, 500), scale=(0.12, 1.0)), usual) < SIGNIFICANT
    assert crop_p(draw_crops((375, 500), ratio=(0.7, 1 / 0.7)), usual) < SIGNIFICANT
    shifted = draw_crops((375, 500))
    shifted[:, 0] *= 0.9
    assert crop_p(shifted, usual) < SIGNIFICANT


def test_an_image_too_long_for_any_try_gets_the_central_crop():
    boxes = draw_crops((20, 900), scale=(0.5, 1.0))
    expected = (0, (900 - 27) // 2, 20, 27)
    np.testing.assert_array_equal(boxes, np.broadcast_to(expected, boxes.shape))


def draw_erased(prob, max_count):
    """Boxes int [n, max_count, 4], zeros for none."""
    word = words(2 + erasing.BOX_WORDS * max_count)
    boxes = jax.jit(jax.vmap(lambda word: erasing.erase_boxes(word, 224, 224, prob)))(word)
    return np.asarray(boxes) * (np.asarray(boxes)[..., 2:3] > 0)


def erase_p(ours, theirs):
    counts = ((boxes[..., 2] > 0).sum(1) for boxes in (ours, theirs))
    ours, theirs = (boxes[boxes[..., 2] > 0].astype(np.float64) for boxes in (ours, theirs))
    sides = [numbers_p(ours[:, i], theirs[:, i]) for i in range(4)]
    areas = numbers_p(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    return min([categories_p(*counts), areas, *sides])


@pytest.mark.parametrize("name,max_count", [("erase_one", 1), ("erase_three", 3)])
def test_boxes_are_erased_as_timm_erases_them(timm, name, max_count):
    assert erase_p(draw_erased(0.25, max_count), timm[name]) > SIGNIFICANT


def test_wrong_erasing_is_seen(timm, monkeypatch):
    assert erase_p(draw_erased(0.29, 1), timm["erase_one"]) < SIGNIFICANT
    assert erase_p(draw_erased(0.25, 2), timm["erase_one"]) < SIGNIFICANT
    monkeypatch.setattr(erasing, "ASPECT_RANGE", (0.5, 2.0))
    assert erase_p(draw_erased(0.25, 1), timm["erase_one"]) < SIGNIFICANT
    monkeypatch.setattr(erasing, "ASPECT_RANGE", (0.3, 1 / 0.3))
    monkeypatch.setattr(erasing, "AREA_RANGE", (0.02, 0.4))
    assert erase_p(draw_erased(0.25, 1), timm["erase_one"]) < SIGNIFICANT


def test_noise_is_normal_and_differs_between_pixels_and_images():
    shape = (40, 40, 3)
    noise = erasing.noise_per_pixel(words(2)[:8], (8, *shape))
    flat = np.asarray(noise).reshape(8, -1)
    assert stats.kstest(flat.ravel(), "norm").pvalue > SIGNIFICANT
    correlation = np.corrcoef(flat) - np.eye(8)
    assert np.abs(correlation).max() < 5 / np.sqrt(flat.shape[1])
    for lag in (1, 3, 120):
        assert abs((flat[:, lag:] * flat[:, :-lag]).mean()) < 5 / np.sqrt(flat.size)


@functools.cache
def draw_mixes(**options):
    defaults = {
        "mixup": 0.8,
        "cutmix": 1.0,
        "cutmix_minmax": None,
        "mix_prob": 1.0,
        "switch_prob": 0.5,
    }
    keys = jax.random.split(jax.random.key(7), OURS)
    draw = functools.partial(mix.draw_mix, height=224, width=224, **defaults | options)
    return jax.jit(jax.vmap(draw))(keys)


def mix_p(lam, cut, theirs):
    found = [categories_p(cut, theirs[:, 1])]
    for kind in (False, True):
        reference = theirs[:, 0][theirs[:, 1] == kind]
        if len(reference):
            found.append(numbers_p(np.asarray(lam)[np.asarray(cut) == kind], reference))
    return min(found)


@pytest.mark.parametrize(
    "name,options",
    [
        ("mix_default", {}),
        ("mix_rare", {"mixup": 0.2, "cutmix": 0.0, "mix_prob": 0.6}),
        ("mix_minmax", {"mixup": 0.0, "cutmix_minmax": (0.2, 0.8)}),
    ],
)
def test_lambdas_are_drawn_as_timm_draws_them(timm, name, options):
    drawn = draw_mixes(**options)
    assert mix_p(drawn.lam, drawn.cut, timm[name]) > SIGNIFICANT


def test_wrong_lambdas_are_seen(timm):
    theirs = timm["mix_default"]
    right = draw_mixes()
    # One program for all three (to compile costs seconds): the wrong rows are swapped in.
    uniform = np.random.RandomState(1).uniform(size=OURS)
    lam, cut = np.asarray(right.lam), np.asarray(right.cut)
    assert mix_p(np.where(cut, lam, uniform**0.8), cut, theirs) < SIGNIFICANT
    assert mix_p(np.where(uniform < 0.03, 1.0, lam), cut & (uniform >= 0.03), theirs) < SIGNIFICANT
    assert mix_p(lam, cut & (uniform < 0.93), theirs) < SIGNIFICANT
    # Without the correction for the clipped part of the box.
    side = np.sqrt(1 - np.random.RandomState(0).uniform(size=OURS))
    uncorrected = np.where(right.cut, 1 - side**2, right.lam)
    assert mix_p(uncorrected, right.cut, theirs) < SIGNIFICANT
