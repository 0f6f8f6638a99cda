"""RegNetY: timm's design and answers, torch's BatchNorm, folding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.random_weights import random_image, random_state

from deit_jax import models
from deit_jax.errors import ConfigError
from deit_jax.models import registry, regnet
from deit_jax.pretrained.formats import names

SMALL = {"widths": (16, 32), "depths": (1, 2), "group_sizes": (8, 8), "strides": (1, 2)}


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "capture"))
def run(model, variables, image, **kwargs):
    return models.apply(model, variables, image, **kwargs)


def reference_variables(model, naming="timm"):
    table = names.entries(model, naming)
    return names.read(table, random_state({e.names[0]: e.part_shape for e in table}))


@pytest.fixture(scope="module")
def small():
    model = models.create_model("regnety_002", num_classes=5, image_size=32, stem_stride=1, **SMALL)
    return model, reference_variables(model)


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_designs_equal_timm(vectors):
    stored = np.load(vectors / "models_timm.npz")
    registered = models.list_models("regnety_*")
    assert {f"design/{name}" for name in registered} == {
        k for k in stored if k.startswith("design/")
    }
    for name in registered:
        attributes = registry.ARCHITECTURES[name][1]
        found = np.array([attributes[key] for key in ("widths", "depths", "group_sizes")]).T
        np.testing.assert_array_equal(found, stored[f"design/{name}"], err_msg=name)


@pytest.mark.parametrize(
    "name", [f"regnety_{size}" for size in ("008_tv", "080_tv", "640", "1280", "2560", "040_sgn")]
)
def test_sizes_equal_timm(vectors, name):
    stored = np.load(vectors / "models_timm.npz")
    assert models.create_model(name).count().parameters == stored[f"parameters/{name}"]


def test_group_norm_is_not_folded():
    model = models.create_model("regnety_040_sgn", **SMALL | {"widths": (16, 32)})
    assert not model.has_batch_stats and model.without_batch_norm() is model
    assert model.fold_batch_norm({"params": {}}) == (model, {"params": {}})
    for wrong in ({"norm_group": 24}, {"norm_group": 0}, {"activation": "gelu"}, {"folded": True}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            models.create_model("regnety_040_sgn", **SMALL | {"widths": (16, 32)} | wrong)


def test_teacher_is_the_published_one():
    teacher = models.create_model("regnety_160")
    assert teacher.widths == (224, 448, 1232, 3024)
    assert teacher.depths == (2, 4, 11, 1)
    assert set(teacher.group_sizes) == {112}


@pytest.mark.parametrize(
    ("key", "name", "size", "classes"),
    [
        ("regnet", "regnety_002", 64, 7),
        ("regnet_sgn", "regnety_040_sgn", 32, 7),
        ("regnety_004", "regnety_004", 224, 1000),
    ],
)
def test_logits_and_blocks_equal_timm(vectors, key, name, size, classes):
    stored = np.load(vectors / "models_timm.npz")
    design = {"widths": (16, 32, 64, 128), "depths": (1, 1, 3, 1), "group_sizes": (16,) * 4}
    model = models.create_model(name, num_classes=classes, **design if name.endswith("sgn") else {})
    output, features = run(
        model, reference_variables(model), random_image(size, size), capture=True
    )
    found = features | {"logits": output.logits}
    expected = {k.split("/")[1]: stored[k] for k in stored if k.startswith(f"{key}/")}
    assert "logits" in expected
    for block, value in expected.items():
        assert relative(found[block], value) < 1e-5, block


def test_hugging_face_names_equal_transformers(vectors):
    stored = np.load(vectors / "models_hf.npz")
    model = models.create_model("regnety_002", num_classes=7, **SMALL | {"strides": (2, 2)})
    output, features = run(
        model, reference_variables(model, "hf"), random_image(48, 48), capture=True
    )
    assert relative(output.logits, stored["regnet/logits"]) < 1e-5
    assert relative(features["s2_b2"], stored["regnet/s2_b2"]) < 1e-5


def test_training_equals_torch(vectors):
    """Logits by batch statistics, and running statistics with the unbiased variance."""
    stored = np.load(vectors / "models_timm.npz")
    model = models.create_model("regnety_002", num_classes=7)
    variables = reference_variables(model)
    output, new = run(model, variables, random_image(64, 64), train=True)
    assert relative(output.logits, stored["regnet_train/logits"]) < 1e-3
    table = [e for e in names.entries(model, "timm") if e.path.startswith("batch_stats/")]
    found = names.write(table, {"batch_stats": new})
    checked = [key.split("/")[1] for key in stored if key.startswith("regnet_train/stem")]
    assert len(checked) == 2
    for name in checked:
        np.testing.assert_allclose(
            found[name], stored[f"regnet_train/{name}"], rtol=2e-5, atol=1e-6
        )
    # At one pixel and two rows the unbiased variance is twice the biased one.
    last = "s4.b7.conv3.bn.running_var"
    np.testing.assert_allclose(found[last], stored[f"regnet_train/{last}"], rtol=2e-2, atol=1e-5)


def test_batch_statistics_are_those_of_the_global_batch(small):
    model, variables = small
    image = random_image(32, 32, 8)
    expected = run(model, variables, image, train=True)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    found = run(model, variables, jax.device_put(image, sharding), train=True)
    assert relative(found[0].logits, expected[0].logits) < 1e-4
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[1], expected[1]
    )
    # Statistics of a part of the batch would be others.
    part = run(model, variables, np.repeat(image[:4], 2, axis=0), train=True)
    assert relative(part[0].logits[0], expected[0].logits[0]) > 1e-2


def test_evaluation_leaves_statistics_alone(small):
    model, variables = small
    _, new = run(model, variables, random_image(32, 32), train=True)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new, variables["batch_stats"])
    assert jax.tree.all(moved)
    image = random_image(32, 32)
    output = run(model, variables, image).logits
    other = run(model, variables, np.stack([image[0], 3 * image[1]])).logits
    np.testing.assert_allclose(other[0], output[0], rtol=1e-5, atol=1e-5)


def test_folding_changes_no_logit(small):
    for model, variables in (small, _published_teacher()):
        folded_model, folded = model.fold_batch_norm(variables)
        assert set(folded) == {"params"}
        assert not any("bn" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(folded))
        image = random_image(64, 64)
        plain = run(model, variables, image).logits
        assert relative(run(folded_model, folded, image).logits, plain) < 1e-4
    with pytest.raises(ValueError, match="folded already"):
        folded_model.fold_batch_norm(folded)
    with pytest.raises(ValueError, match="cannot be trained"):
        models.apply(folded_model, folded, image, train=True)


def _published_teacher():
    """The first stages of the teacher at their full width."""
    stages = {"widths": (224, 448), "depths": (2, 1), "group_sizes": (112, 112), "strides": (2, 2)}
    model = models.create_model("regnety_160", num_classes=3, **stages)
    return model, reference_variables(model)


def test_initialization_is_timms():
    stages = {"widths": (112, 256), "depths": (1, 1), "group_sizes": (16, 16), "strides": (2, 2)}
    model = models.create_model("regnety_006", image_size=32, **stages)
    variables = jax.device_get(models.init_variables(model, jax.random.key(0)))
    block = variables["params"]["s2_b1"]
    for conv, fan_out in (("conv1", 256), ("conv2", 9 * 16), ("conv3", 256)):
        kernel = block[conv]["conv"]["kernel"]
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / fan_out), rtol=0.03)
    assert (block["conv3"]["bn"]["scale"] == 0).all()
    assert (block["conv1"]["bn"]["scale"] == 1).all()
    np.testing.assert_allclose(variables["params"]["head"]["kernel"].std(), 0.01, rtol=0.02)


def test_drop_path_drops_the_residual_branch_only(small):
    model, variables = small
    model = model.clone(drop_path_rate=0.9)
    image, keys = random_image(32, 32, 8), jax.random.split(jax.random.key(0), 8)
    _, _, features = run(model, variables, image, train=True, keys=keys, capture=True)
    # Without its residual branch the last block is the ReLU of its input, which is positive.
    same = np.isclose(features["s2_b2"], features["s2_b1"], atol=1e-5).all((1, 2, 3))
    assert 5 <= same.sum() <= 8
    with pytest.raises(ValueError, match="needs keys"):
        models.apply(model, variables, image, train=True)


def test_strides_set_the_resolution(small):
    model, variables = small
    _, features = run(model, variables, random_image(32, 32), capture=True)
    assert features["stem"].shape[1:3] == features["s1_b1"].shape[1:3] == (32, 32)
    assert features["s2_b2"].shape[1:3] == (16, 16)


def test_bf16_stays_near(small):
    model, variables = small
    exact = run(model, variables, random_image(32, 32)).logits
    half = run(model.clone(dtype="bfloat16"), variables, random_image(32, 32)).logits
    assert half.dtype == jnp.float32
    assert 0 < relative(half, exact) < 0.03


def test_design_parameters_of_section_3():
    found = regnet.stage_design(w0=24, wa=36.44, wm=2.49, depth=13, group_size=8)
    assert found == {
        "widths": (24, 56, 152, 368),
        "depths": (1, 1, 4, 7),
        "group_sizes": (8, 8, 8, 8),
    }


def test_the_gradient_of_a_gate_in_bfloat16_is_a_sum_in_f32():
    """Of 4,096 places, most of one sign."""
    image = jax.random.uniform(jax.random.key(0), (2, 64, 64, 8), minval=0.5)
    variables = regnet.SqueezeExcite(4, jnp.float32, "relu").init(jax.random.key(1), image)

    def gradient(dtype):
        layer = regnet.SqueezeExcite(4, dtype, "relu")
        loss = lambda v: layer.apply(v, image.astype(dtype)).astype(jnp.float32).sum()
        return jax.jit(jax.grad(loss))(variables)["params"]["fc2"]["bias"]

    np.testing.assert_allclose(gradient(jnp.bfloat16), gradient(jnp.float32), rtol=0.02)
