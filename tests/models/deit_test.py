"""The transformers: answers of timm and transformers, training behaviour."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.random_weights import random_image, random_state

from deit_jax import models
from deit_jax.errors import ConfigError
from deit_jax.models import count, layers
from deit_jax.pretrained.formats import names

SMALL = {"image_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TIMM_SMALL = {"image_size": 48, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 7}


def reference_variables(model, naming="timm"):
    table = names.entries(model, naming)
    shapes = {name: entry.part_shape for entry in table for name in entry.names}
    return names.read(table, random_state(shapes))


def assert_same_answers(model, variables, expected, image):
    output, features = jax.jit(lambda v, x: models.apply(model, v, x, capture=True))(
        variables, image
    )
    found = features | output._asdict()
    assert (output.dist_logits is not None) == ("dist_logits" in expected)
    for key, value in expected.items():
        error = np.abs(found[key] - value).max() / np.abs(value).max()
        assert error < 1e-5, f"{key} is {error:.1e} off"


def under(vectors, prefix):
    return {
        key.removeprefix(f"{prefix}/"): vectors[key]
        for key in vectors
        if key.startswith(f"{prefix}/")
    }


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("deit", "deit_tiny_patch16_224"),
        ("deit_distilled", "deit_tiny_distilled_patch16_224"),
        ("deit3", "deit3_small_patch16_224"),
    ],
)
def test_logits_and_every_block_equal_timm(vectors, key, name):
    expected = under(np.load(vectors / "models_timm.npz"), key)
    assert {"logits", "blocks_0", "blocks_2"} <= set(expected)
    model = models.create_model(name, **TIMM_SMALL)
    assert_same_answers(model, reference_variables(model), expected, random_image(48, 48))


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_whole_models_equal_timm(vectors, name):
    expected = under(np.load(vectors / "models_timm.npz"), name)
    model = models.create_model(name)
    assert_same_answers(model, reference_variables(model), expected, random_image(224, 224))


@pytest.mark.parametrize(
    ("key", "kwargs"),
    [
        ("deit_teacher", {"distilled": True}),
        ("deit", {"distilled": True, "dist_head": False}),
        ("vit", {}),
    ],
)
def test_hugging_face_models_equal_transformers(vectors, key, kwargs):
    expected = under(np.load(vectors / "models_hf.npz"), key)
    small = TIMM_SMALL | {"depth": 2, "epsilon": 1e-12} | kwargs
    model = models.create_model("deit_tiny_patch16_224", **small)
    variables = reference_variables(model, "hf-modules")
    assert_same_answers(model, variables, expected, random_image(48, 48))


@pytest.mark.parametrize("distilled", [False, True])
def test_mmpretrain_models_equal_its_classes(vectors, distilled):
    key = "deit_distilled" if distilled else "deit"
    expected = under(np.load(vectors / "models_mmpretrain.npz"), key)
    score = expected.pop("score")
    model = models.create_model("deit_tiny_patch16_224", **TIMM_SMALL, distilled=distilled)
    variables = reference_variables(model, "mmpretrain")
    assert_same_answers(model, variables, expected, random_image(48, 48))
    # What it evaluates: the mean of the two heads' logits.
    heads = [value for name, value in expected.items() if "logits" in name]
    np.testing.assert_allclose(np.mean(heads, axis=0), score, rtol=1e-5, atol=1e-6)


def test_initialization_is_the_published_one():
    model = models.create_model("deit_small_distilled_patch16_224", depth=1)
    params = jax.device_get(models.init_variables(model, jax.random.key(0)))["params"]
    bound = 768**-0.5
    for leaf in params["patch_embed"].values():
        assert np.abs(leaf).max() <= bound
        np.testing.assert_allclose(np.std(leaf), bound / np.sqrt(3), rtol=0.06)
    block = params["blocks_0"]
    normal = [params["head"]["kernel"], params["head_dist"]["kernel"], params["pos_embed"]]
    normal += [block["attn"][name]["kernel"] for name in ("qkv", "proj")]
    normal += [block["mlp"][name]["kernel"] for name in ("fc1", "fc2")]
    for leaf in normal:
        np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.01)
        assert abs(np.mean(leaf)) < 3e-4
        # A normal cut at two standard deviations has none of these.
        np.testing.assert_allclose(np.mean(np.abs(leaf) > 0.04), 0.0455, rtol=0.1)
    for name in ("cls_token", "dist_token"):
        np.testing.assert_allclose(np.std(params[name]), 0.02, rtol=0.15)
    biases = [block["attn"]["qkv"], block["attn"]["proj"], block["mlp"]["fc1"], params["head"]]
    assert all((leaf["bias"] == 0).all() for leaf in [*biases, params["norm"]])
    assert (params["norm"]["scale"] == 1).all()


def test_layer_scale_starts_small():
    model = models.create_model("deit3_small_patch16_224", depth=1, image_size=32)
    variables = jax.device_get(models.init_variables(model, jax.random.key(0)))
    block = variables["params"]["blocks_0"]
    np.testing.assert_array_equal(block["gamma_1"], np.full(384, 1e-4, np.float32))
    np.testing.assert_array_equal(block["gamma_2"], np.full(384, 1e-4, np.float32))


@pytest.fixture(scope="module")
def small():
    model = models.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **SMALL)
    return model, reference_variables(model)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "capture"))
def run(model, variables, image, **kwargs):
    return models.apply(model, variables, image, **kwargs)


def loss_and_grad(model, variables, image, keys):
    def loss(params):
        output, _ = models.apply(model, {"params": params}, image, train=True, keys=keys)
        return jnp.square(output.logits).sum() + output.dist_logits.sum()

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


def test_scan_and_remat_change_no_number(small):
    model, variables = small
    model = model.clone(drop_path_rate=0.5)
    image, keys = random_image(32, 32, 4), jax.random.split(jax.random.key(3), 4)
    plain = loss_and_grad(model, variables, image, keys)
    for option in ({"remat": "full"}, {"scan": True, "remat": "dots"}):
        other = loss_and_grad(model.clone(**option), variables, image, keys)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4, err_msg=str(option))


def test_scanned_blocks_drop_the_same_values(small):
    model, variables = small
    model = model.clone(dropout_rate=0.3, drop_path_rate=0.0)
    image, keys = random_image(32, 32), jax.random.split(jax.random.key(3), 2)
    plain, _ = run(model, variables, image, train=True, keys=keys)
    scanned, _ = run(model.clone(scan=True), variables, image, train=True, keys=keys)
    np.testing.assert_allclose(scanned.logits, plain.logits, rtol=1e-5, atol=1e-5)


def test_scan_and_remat_do_what_they_say(small):
    """One traced block instead of two; the backward pass computes the forward's products again."""
    model, variables = small
    image = random_image(32, 32)

    def products(model):
        def loss(params):
            return models.apply(model, {"params": params}, image).logits.sum()

        return str(jax.make_jaxpr(jax.grad(loss))(variables["params"])).count("dot_general[")

    plain = products(model)
    assert products(model.clone(scan=True)) < 0.6 * plain
    assert products(model.clone(remat="full")) > plain


def test_drop_path_is_unbiased_and_drops_whole_rows():
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = layers.drop_draws(keys, 5, 2)
    assert draws.shape == (4000, 5, 2)
    # Branches and blocks are independent of each other.
    assert abs(np.corrcoef(draws.reshape(4000, -1).T) - np.eye(10)).max() < 0.08
    dropped = layers.drop_path(jnp.ones((4000, 2, 3)), draws[:, 1, 1], 0.3)
    rows = np.asarray(dropped.reshape(4000, -1))
    assert (rows == rows[:, :1]).all()
    np.testing.assert_allclose(np.unique(rows), [0, 1 / 0.7], rtol=1e-6)
    np.testing.assert_allclose(rows.mean(), 1, atol=0.04)


def test_dropout_is_unbiased_and_independent_per_value():
    keys = jax.random.split(jax.random.key(0), 8)
    dropped = np.asarray(layers.dropout(jnp.ones((8, 50, 20)), keys, 0.25))
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.03)
    np.testing.assert_allclose((dropped == 0).mean((1, 2)), np.full(8, 0.25), atol=0.06)


def test_draws_belong_to_the_row(small):
    """The same key gives the same answer wherever the row stands, so batches can be split."""
    model, variables = small
    model = model.clone(drop_path_rate=0.6, dropout_rate=0.1)
    image, keys = random_image(32, 32, 6), jax.random.split(jax.random.key(5), 6)
    whole, _ = run(model, variables, image, train=True, keys=keys)
    order = np.array([4, 0, 5, 3, 1, 2])
    moved, _ = run(model, variables, image[order], train=True, keys=keys[order])
    np.testing.assert_allclose(moved.logits, whole.logits[order], rtol=1e-5, atol=1e-5)
    others, _ = run(model, variables, image, train=True, keys=keys[::-1])
    assert np.abs(others.logits - whole.logits).max() > 1e-2


def test_evaluation_draws_nothing(small):
    model, variables = small
    model = model.clone(drop_path_rate=0.9, dropout_rate=0.5)
    image, keys = random_image(32, 32), jax.random.split(jax.random.key(5), 2)
    plain = run(model.clone(drop_path_rate=0.0, dropout_rate=0.0), variables, image)
    found = run(model, variables, image, keys=keys)
    np.testing.assert_array_equal(found.logits, plain.logits)


def test_stochastic_depth_of_each_block():
    deit = models.create_model("deit_tiny_patch16_224")
    np.testing.assert_allclose(deit.drop_rates(), 0.1 * np.arange(12) / 11)
    deit3 = models.create_model("deit3_base_patch16_224")
    assert deit3.drop_rates() == [0.2] * 12


def test_first_block_is_never_dropped_and_last_is(small):
    model, variables = small
    image, keys = random_image(32, 32, 8), jax.random.split(jax.random.key(1), 8)
    _, _, plain = run(model.clone(drop_path_rate=0.0), variables, image, train=True, capture=True)
    _, _, dropped = run(
        model.clone(drop_path_rate=0.9), variables, image, train=True, keys=keys, capture=True
    )
    np.testing.assert_array_equal(dropped["blocks_0"], plain["blocks_0"])
    # Both branches of most rows are dropped: the block hands its input on.
    same = (dropped["blocks_1"] == dropped["blocks_0"]).all((1, 2))
    assert same.sum() >= 4


def test_bf16_computes_in_bf16_and_stays_near(small):
    model, variables = small
    image = random_image(32, 32)
    exact = run(model, variables, image)
    half = model.clone(dtype="bfloat16")
    found, features = run(half, variables, image, capture=True)
    assert found.logits.dtype == found.dist_logits.dtype == jnp.float32
    assert features["blocks_1"].dtype == jnp.bfloat16
    assert features["attention_0"].dtype == jnp.float32
    error = np.abs(found.logits - exact.logits).max() / np.abs(exact.logits).max()
    assert 0 < error < 0.03
    products = _product_types(jax.make_jaxpr(lambda v: models.apply(half, v, image))(variables))
    # Only the two heads multiply in f32.
    assert products.count("float32") == 2
    assert products.count("bfloat16") == len(products) - 2


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"])
def test_gradients_in_bfloat16_are_sums_in_f32(name):
    """Of every parameter, also of those that thousands of tokens share."""
    size = {"image_size": 32, "patch_size": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 4}
    image = 1 + jax.random.normal(jax.random.key(1), (32, 32, 32, 3))
    model = models.create_model(name, depth=1, **size)
    variables = models.init_variables(model, jax.random.key(0))
    spread = lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape)
    params = jax.tree.map(spread, variables["params"])

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(dtype, params):
        def loss(params):
            output = models.apply(model.clone(dtype=dtype), {"params": params}, image)
            logits = [x for x in output if x is not None]
            return -sum(jax.nn.log_softmax(x)[:, 0].mean() for x in logits)

        return jax.grad(loss)(params)

    half, exact = gradients("bfloat16", params), gradients("float32", params)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(half), jax.tree.leaves(exact), strict=True
    ):
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error < 0.02, (jax.tree_util.keystr(path), error)


def _product_types(jaxpr):
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(str(equation.invars[0].aval.dtype))
        for inner in count.programs_in(equation.params):
            found += _product_types(inner)
    return found


def test_captured_attention_rows_sum_to_one(small):
    model, variables = small
    _, features = run(model, variables, random_image(32, 32), capture=True)
    weights = features["attention_1"]
    assert weights.shape == (2, 2, 18, 18)
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 2, 18)), rtol=1e-5)


def test_images_need_not_be_square():
    model = models.create_model("deit_tiny_patch16_224", **SMALL | {"image_size": (16, 40)})
    variables = models.init_variables(model, jax.random.key(0))
    assert variables["params"]["pos_embed"].shape == (1, 1 + 2 * 5, 16)
    assert run(model, variables, random_image(16, 40)).logits.shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "kwargs", "error", "text"),
    [
        ("deit_tiny_patch16_22", {}, ConfigError, "known: deit_tiny_patch16_224"),
        ("deit_tiny_patch16_224", {"heads": 3}, TypeError, "takes no heads; known: num_classes"),
        ("deit_tiny_patch16_224", {"image_size": 225}, ConfigError, "multiple of patch_size 16"),
        ("deit_tiny_patch16_224", {"num_heads": 5}, ConfigError, "not a multiple of num_heads 5"),
        ("deit_tiny_patch16_224", {"attention": "flash"}, ConfigError, "auto, cudnn, pallas, xla"),
        ("deit_tiny_patch16_224", {"remat": "all"}, ConfigError, "known: dots, full, none"),
        ("regnety_002", {"widths": (12, 24)}, ConfigError, "one entry per stage"),
        ("regnety_002", {"attention": "xla"}, TypeError, "takes no attention; known: num_c"),
    ],
)
def test_wrong_models_are_refused(name, kwargs, error, text):
    with pytest.raises(error, match=text):
        models.create_model(name, **kwargs)


def test_wrong_inputs_are_refused(small):
    model, variables = small
    image = random_image(32, 32)
    with pytest.raises(ValueError, match="create it with image_size="):
        models.apply(model, variables, random_image(48, 48))
    with pytest.raises(ValueError, match="needs keys, one per row"):
        models.apply(model, variables, image, train=True)
    keys = jax.random.split(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"expected one per row: \(2,\)"):
        models.apply(model, variables, image, train=True, keys=keys)
