"""Optimizers against torch and timm on fixed gradients; parameter groups and freezing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from optax import contrib

from deit_jax import builders, errors, models, optim, trees
from deit_jax.distributed import sharding
from deit_jax.optim import optimizers
from deit_jax.train import schema

VARIANTS = {
    "adamw": {},
    "adamw_timm": {"decay_dist_token": False},
    "adamw_layers": {"layer_decay": 0.65},
    "adamw_clip": {"clip_norm": 1.0},
    "adamw_attn": {"trainable": "attn_only"},
    "lamb": {"name": "lamb"},
    "sgd_nesterov": {"name": "sgd"},
    "sgd_momentum": {"name": "sgd", "nesterov": False},
    "sgd_all": {"name": "sgd", "decay_all": True},
}


# The model of the stored tensors, which numbers their layers.
MODEL = models.create_model("deit_tiny_distilled_patch16_224", depth=3)


@pytest.fixture(scope="module")
def stored(vectors):
    return dict(np.load(vectors / "optim.npz"))


def our_path(name: str) -> list[str]:
    """Path in our tree of timm's parameter `name`; tensors keep torch's shape here."""
    path = name.replace("blocks.", "blocks_").replace("patch_embed.proj", "patch_embed").split(".")
    if path[-1] == "weight":
        path[-1] = "scale" if path[-2].startswith("norm") else "kernel"
    return path


def tree(stored, step):
    """Parameters (step 0) or gradients as make_optim.py draws them, as our nested dict."""
    random, nested = np.random.RandomState(step), {}
    scale = 0.5 if step == 0 else 0.003 * step
    for name, shape in zip(stored["names"], stored["shapes"], strict=True):
        *parents, leaf = our_path(str(name))
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        shape = tuple(int(n) for n in str(shape).split(","))
        node[leaf] = jnp.asarray((scale * random.randn(*shape)).astype(np.float32))
    return nested


def flat(stored, nested):
    """The tree's values in timm's order."""
    leaves = trees.named_leaves(nested)
    return np.concatenate(
        [np.ravel(leaves["/".join(our_path(str(name)))]) for name in stored["names"]]
    )


def test_norm_is_that_of_all_leaves():
    shapes = {"a": (3, 4), "b": (3, 4), "c": (), "d": (5,), "e": (3, 4)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    tree = {k: jax.random.normal(key, shapes[k]) for k, key in zip(shapes, keys, strict=True)}
    np.testing.assert_allclose(trees.norm(tree), optax.tree.norm(tree), rtol=1e-6)
    assert trees.norm({}) == 0
    # All leaves of a shape in one sum.
    assert str(jax.make_jaxpr(trees.norm)(tree)).count("reduce_sum") == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_equal_the_reference(stored, variant):
    rates = jnp.asarray(stored["rates"])
    params = tree(stored, 0)
    tx = optim.make_optimizer(params, lambda step: rates[step], MODEL, **VARIANTS[variant])

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, params_at = tx.init(params), []
    for number in range(1, 21):
        params, state = step(params, state, tree(stored, number))
        if number in stored["kept"]:
            params_at.append(flat(stored, params))
    # optax takes Adam's 1 - beta2 ** count in f32, where 1 - .999 has a relative error of
    # 1.3e-5; torch does not.
    atol = 1e-6 if variant.startswith("sgd") else 2e-5
    np.testing.assert_allclose(np.stack(params_at), stored[variant], rtol=1e-6, atol=atol)


def test_variants_differ_by_more_than_the_tolerance(stored):
    """What makes the test above able to fail."""
    names = list(VARIANTS)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(stored[first][-1] - stored[second][-1]).max() > 1e-4, (first, second)


def abstract_params(name):
    model = models.create_model(name)
    variables = models.abstract_variables(model)
    return variables["params"]


@pytest.mark.parametrize(
    "name, decayed, total",
    [
        ("deit_tiny_patch16_224", 5_839_872 - 192_000, 5_717_416),
        ("deit_tiny_distilled_patch16_224", 5_839_872 + 192, 5_910_800),
        ("deit3_small_patch16_224", 21_912_576, 22_059_496),
        ("regnety_160", 83_443_552, 83_590_140),
    ],
)
def test_published_groups_of_real_models(name, decayed, total):
    groups = optim.decay_groups(abstract_params(name))
    assert [g.decay for g in groups] == [0.05, 0.0]
    assert groups[0].num_params == decayed
    assert sum(g.num_params for g in groups) == total
    assert all(path.split("/")[-1] in ("kernel", "dist_token") for path in groups[0].paths)


def test_layer_decay_scales_as_timm(stored):
    groups = optim.decay_groups(tree(stored, 0), MODEL, layer_decay=0.5)
    scale = {path: group.lr_scale for group in groups for path in group.paths}
    # Depth 3: embeddings are layer 0 and the heads layer 4; the norm goes with block 3.
    assert scale["pos_embed"] == scale["dist_token"] == scale["patch_embed/kernel"] == 0.5**4
    assert scale["blocks_0/attn/qkv/kernel"] == 0.5**3
    assert scale["blocks_2/norm1/bias"] == scale["norm/scale"] == 0.5
    assert scale["head/kernel"] == scale["head_dist/bias"] == 1.0


def test_table_counts_every_parameter_once(stored):
    groups = optim.decay_groups(tree(stored, 0), MODEL, trainable="attn_only", layer_decay=0.75)
    table = optim.format_groups(groups).splitlines()
    assert len(table) == len(groups) + 2
    total = flat(stored, tree(stored, 0)).size
    assert f"{total:,}" in table[-1] and f"{len(stored['names'])}" in table[-1]
    assert sum("frozen" in line for line in table) == 1


@pytest.mark.parametrize("name", ["lamb", "sgd"])
def test_frozen_parameters_stay_and_have_no_state(stored, name):
    params = tree(stored, 0)
    tx = optim.make_optimizer(params, lambda step: 0.1, name=name, trainable=r"^head/")
    state = tx.init(params)
    huge = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params) | {
        "head": tree(stored, 1)["head"]
    }
    updates, state = jax.jit(tx.update)(huge, state, params)
    new = optax.apply_updates(params, updates)
    for path, old in trees.named_leaves(params).items():
        changed = bool(jnp.any(old != trees.named_leaves(new)[path]))
        assert changed == path.startswith("head/"), path
    head = sum(p.size for p in jax.tree.leaves(params["head"]))
    moments = 1 if name == "sgd" else 2
    assert sum(s.size for s in jax.tree.leaves(state) if s.ndim) == moments * head


def test_lamb_leaves_zero_tensors_and_undecayed_tensors_unadapted():
    params = {"head": {"kernel": jnp.zeros((3, 2)), "bias": 5 * jnp.ones(2)}}
    tx = optim.make_optimizer(params, lambda step: 1.0, name="lamb", lamb_clip_norm=None)
    update = jax.jit(tx.update)
    updates, _ = update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["head"]["kernel"], -1.0, rtol=2e-5)
    np.testing.assert_allclose(updates["head"]["bias"], -1.0, rtol=2e-5)
    params["head"]["kernel"] = jnp.full((3, 2), 5.0)
    updates, _ = update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["head"]["bias"], -1.0, rtol=2e-5)
    np.testing.assert_allclose(updates["head"]["kernel"], -5.0, rtol=1e-6)


def test_sharded_state_gives_the_same_update(stored):
    params, grads = tree(stored, 0), tree(stored, 20)
    tx = optim.make_optimizer(params, lambda step: 0.01, name="lamb")
    alone, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    mesh = sharding.make_mesh(fsdp=4)
    place = lambda x: jax.device_put(x, sharding.tree_shardings(mesh, x, min_size=8))
    spread, _ = jax.jit(tx.update)(place(grads), place(tx.init(params)), place(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9), alone, spread)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "adam"}, "adamw"),
        ({"trainable": "atn_only"}, "attn_only"),
        ({"trainable": "("}, "regular expression"),
        ({"weight_decay": -0.1}, "^weight_decay must be"),
        ({"layer_decay": 1.5}, "^layer_decay must be"),
        ({"clip_norm": 0.0}, "^clip_norm must be"),
        ({"beta2": 1.0}, "^beta2 must be"),
        ({"name": "lamb", "beta1": -0.1}, "^beta1 must be"),
        ({"name": "lamb", "lamb_clip_norm": 0.0}, "^lamb_clip_norm must be"),
        ({"name": "sgd", "momentum": 1.0}, "^momentum must be"),
    ],
)
def test_wrong_options_are_refused(stored, options, words):
    with pytest.raises(errors.ConfigError, match=words):
        optim.make_optimizer(tree(stored, 0), lambda step: 0.1, **options)


def test_parameters_without_a_rule_are_refused():
    with pytest.raises(errors.ConfigError, match="blocks_0/relative_bias_table"):
        optim.decay_groups({"blocks_0": {"relative_bias_table": jnp.zeros((2, 2))}})
    for model in (None, models.create_model("regnety_002"), MODEL):
        with pytest.raises(errors.ConfigError, match="'s1/kernel' .* layer_decay=None"):
            optim.decay_groups({"s1": {"kernel": jnp.zeros((2, 2))}}, model, layer_decay=0.5)


COMMON = {"name", "weight_decay", "decay_dist_token", "decay_all", "layer_decay"}
COMMON |= {"trainable", "clip_norm"}
ADAM = {"beta1", "beta2", "eps"}


@pytest.mark.parametrize(
    "name, own",
    [("adamw", ADAM), ("lamb", ADAM | {"lamb_clip_norm"}), ("sgd", {"momentum", "nesterov"})],
)
def test_options_are_those_of_the_chosen_optimizer(stored, name, own):
    assert set(builders.options(optim.make_optimizer, {"name": name})) == COMMON | own
    assert builders.headline(optimizers.OPTIMIZERS[name])
    for option in (ADAM | {"lamb_clip_norm", "momentum", "nesterov"}) - own:
        section = {"name": name, option: 0.5}
        with pytest.raises(errors.ConfigError, match=f"unknown key config.optim.{option};"):
            schema.resolve(
                ConfigDict({"model": {"name": "deit_tiny_patch16_224"}, "optim": section})
            )
        with pytest.raises(TypeError, match=option):
            optim.make_optimizer(tree(stored, 0), lambda step: 0.1, **section)


def one_update(params, grads, **options):
    """The changes of the parameters in one step at rate .1, and the state, both by path."""
    tx = optim.make_optimizer(params, lambda step: 0.1, **options)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    return trees.named_leaves(updates), state


def sizes(state):
    return sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)


def test_lion_is_one_function_and_one_line(stored, monkeypatch):
    def lion(rules, *, beta1: float = 0.9, beta2: float = 0.99):
        """Lion (arXiv 2302.06675)."""
        return optax.chain(optax.scale_by_lion(beta1, beta2), optimizers.decay_weights(rules))

    monkeypatch.setitem(optimizers.OPTIMIZERS, "lion", lion)
    options = {"name": "lion", "beta2": 0.95, "weight_decay": 0.5}
    assert set(builders.options(optim.make_optimizer, options)) == COMMON | {"beta1", "beta2"}
    params, grads = tree(stored, 0), tree(stored, 1)
    updates, state = one_update(params, grads, **options)
    assert sizes(state) == sum(p.size for p in jax.tree.leaves(params))
    for path, grad in trees.named_leaves(grads).items():
        decayed = path.endswith(("kernel", "dist_token"))
        decay = 0.5 * trees.named_leaves(params)[path] if decayed else 0.0
        np.testing.assert_allclose(updates[path], -0.1 * (jnp.sign(grad) + decay), rtol=1e-6)
    state_of_head = one_update(params, grads, **options, trainable="heads")[1]
    heads = params["head"] | {f"dist_{k}": v for k, v in params["head_dist"].items()}
    assert sizes(state_of_head) == sum(p.size for p in heads.values())
    with pytest.raises(TypeError, match="eps"):
        one_update(params, grads, **options, eps=1e-8)


def test_muon_is_one_function_and_one_line(stored, monkeypatch):
    def is_matrix(path, leaf):
        return path.startswith("blocks_") and leaf.ndim == 2

    def muon(rules, *, beta: float = 0.95, beta2: float = 0.999):
        """Muon for the matrices of the blocks, Adam for the rest."""
        kinds = lambda params: trees.map_with_name(
            lambda path, leaf: "muon" if is_matrix(path, leaf) else "adam", params
        )
        dimensions = lambda tree: jax.tree.map(lambda _: contrib.MuonDimensionNumbers(), tree)
        direction = {
            "muon": contrib.scale_by_muon(beta=beta, weight_dimension_numbers=dimensions),
            "adam": optax.scale_by_adam(b2=beta2),
        }
        return optax.chain(optax.partition(direction, kinds), optimizers.decay_weights(rules))

    monkeypatch.setitem(optimizers.OPTIMIZERS, "muon", muon)
    options = {"name": "muon", "beta": 0.9, "weight_decay": 0.0}
    assert set(builders.options(optim.make_optimizer, options)) == COMMON | {"beta", "beta2"}
    params, grads = tree(stored, 0), tree(stored, 1)
    updates, state = one_update(params, grads, **options)
    matrices = {p: x for p, x in trees.named_leaves(params).items() if is_matrix(p, x)}
    everything = sum(p.size for p in jax.tree.leaves(params))
    moments = 2 * everything - sum(x.size for x in matrices.values())
    coefficients = 3
    assert sizes(state) == moments + coefficients
    for path, update in updates.items():
        if path in matrices:
            # Orthogonal but for the five steps of the iteration: all singular values near 1,
            # or near sqrt(columns / rows), by which optax 0.2.6 multiplies.
            rows, columns = update.shape
            values = np.linalg.svd(update / 0.1, compute_uv=False)
            assert 0.6 < values.min() and values.max() < 1.3 * max(1, columns / rows) ** 0.5, path
        else:
            grad = trees.named_leaves(grads)[path]
            expected = -0.1 * grad / (jnp.abs(grad) + 1e-8)
            np.testing.assert_allclose(update, expected, rtol=1e-3)
    _, state = one_update(params, grads, **options, trainable="attn_only")
    assert 0 < sizes(state) < moments
