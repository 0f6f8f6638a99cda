"""The teacher gives the logits of its own model for its own kind of image, without gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from pretrained.settings_test import foreign

from deit_jax import builders, models, rng, teacher
from deit_jax.checkpoint import Checkpointer
from deit_jax.errors import ConfigError
from deit_jax.teacher.model import find_teacher_model
from deit_jax.train import step as step_lib

CLASSES, SIDE = 5, 16
STUDENT = {"mean": (0.31, 0.4, 0.5), "std": (0.37, 0.3, 0.25)}
OTHER = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.9)}
STATISTICS = {"same statistics": STUDENT, "other statistics": OTHER}
DEIT = {"patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
REGNET = {"widths": (8,), "depths": (1,), "group_sizes": (4,), "strides": (2,), "stem_stride": 1}
# name -> (registered name, its attributes, whether the EMA is used)
TEACHERS = {
    "folded RegNet": ("regnety_002", REGNET, False),
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", DEIT, False),
    "EMA": ("deit_tiny_patch16_224", DEIT, True),
}


def random_variables(model, seed):
    """Values of a trained model's size, so that no layer is near the identity or zero."""
    r = np.random.RandomState(seed)
    shapes = models.abstract_variables(model)
    return jax.tree.map(lambda s: r.uniform(0.05, 0.5, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module", params=TEACHERS)
def saved(request, tmp_path_factory):
    """Saves a run for a side and statistics: (options, its model, the variables to use)."""
    name, attributes, ema = TEACHERS[request.param]

    def save(side, image):
        model = models.create_model(name, num_classes=CLASSES, image_size=side, **attributes)
        raw, average = random_variables(model, 0), random_variables(model, 1)
        state = step_lib.init_state(
            model, optax.identity(), jax.random.key(0), ema=True, variables=raw
        )
        state = dataclasses.replace(
            state, ema_params=average["params"], ema_batch_stats=average.get("batch_stats", {})
        )
        metadata = {
            "model": {"name": name, "num_classes": CLASSES, "image_size": side} | attributes,
            "class_names": None,
            "image": image | {"size": (side, side), "crop_ratio": 1.0},
            "config": {},
        }
        folder = tmp_path_factory.mktemp("run")
        with Checkpointer(folder / "checkpoints") as checkpointer:
            checkpointer.save(1, state, metadata=metadata)
        options = {"init": str(folder), "ema": ema, "dtype": "float32", "input_size": side}
        return options, model, average if ema else raw

    return save


def make(options, *, statistics=STUDENT, num_classes=CLASSES):
    loaded = teacher.make_teacher(
        num_classes, SIDE, statistics["mean"], statistics["std"], **options
    )
    assert loaded is not None
    return loaded


def pixels(rows=3):
    return np.random.RandomState(2).uniform(0, 1, (rows, SIDE, SIDE, 3))


def normalized(image, statistics):
    return ((image - statistics["mean"]) / statistics["std"]).astype(np.float32)


def resized(image, side):
    """Bicubic (a = -0.5), antialiased: each output pixel is a normalized sum along both axes."""
    old = image.shape[1]
    stretch = max(old / side, 1.0)
    center = (np.arange(side)[:, None] + 0.5) * old / side - 0.5
    x = np.abs(center - np.arange(old)[None]) / stretch
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.einsum("yh,xw,bhwc->byxc", weights, weights, image)


def mean_of_heads(model, variables, image):
    output = jax.jit(lambda v, x: models.apply(model, v, x))(variables, image)
    heads = [logits for logits in output if logits is not None]
    assert len(heads) == len(model.heads)
    return np.mean(heads, axis=0)


def assert_like(found, expected):
    scale = np.abs(expected).max()
    assert scale > 0 and np.ptp(expected, axis=0).max() > 1e-3 * scale, "rows must differ"
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("side", [SIDE, 8])
def test_teacher_sees_the_same_pixels_in_its_own_terms(saved, side, statistics):
    options, model, variables = saved(side, STATISTICS[statistics])
    made = make(options)
    found = jax.jit(made.fn)(made.variables, normalized(pixels(), STUDENT))
    seen = normalized(resized(pixels(), side), STATISTICS[statistics])
    assert_like(found, mean_of_heads(model, variables, seen))


def test_variables_are_those_of_the_model(saved):
    options, model, _ = saved(SIDE, STUDENT)
    made = make(options)
    assert set(made.variables) == {"params"} and not made.model.has_batch_stats
    count = sum(leaf.size for leaf in jax.tree.leaves(made.variables))
    assert f"{count:,} parameters, at {SIDE} px in float32" in made.description
    assert make(options | {"fold_batch_norm": False}).model == model


def described(**section):
    """What `explain` knows of the teacher of a student for `SIDE` pixels and `CLASSES` classes."""
    known = builders.options(teacher.make_teacher, {})
    defaults = {key: option.default for key, option in known.items()}
    config = {"loss": {"distillation": "hard"}, "teacher": defaults | section}
    model = models.create_model("deit_tiny_patch16_224", num_classes=CLASSES, image_size=SIDE)
    return find_teacher_model(ml_collections.ConfigDict(config), model)


@pytest.mark.parametrize("options", [{}, {"fold_batch_norm": False}, {"input_size": 8}])
def test_explained_teacher_is_the_one_that_runs(saved, options):
    options = saved(SIDE, STUDENT)[0] | options
    made, found = make(options), described(**options)
    assert (found.model, found.description) == (made.model, made.description)


def test_teacher_without_a_checkpoint_is_the_named_model_or_unknown():
    found = described(name="regnety_002", init="missing.pth")
    assert "regnety_002, missing.pth does not exist" in found.description
    assert found.model.folded and found.model.num_classes == CLASSES
    found = described()
    assert found.model is None and "config.teacher.init is not set" in found.description
    with pytest.raises(ConfigError, match="unknown model"):
        described(name="regnety_161")


def test_heads_that_no_file_tells_are_an_option_and_said(tmp_path):
    model = models.create_model(
        "deit_tiny_patch16_224", num_classes=CLASSES, image_size=SIDE, num_heads=6
    )
    folder = foreign(tmp_path / "weights", model)
    for heads, given in ((3, None), (6, 6)):
        options = {"init": str(folder), "num_heads": given, "dtype": "float32"}
        made, found = make(options), described(**options)
        assert made.model.num_heads == found.model.num_heads == heads
        assert made.description == found.description
        assumed = "assumed: num_heads 3 (as deit_tiny_patch16_224 has" in made.description
        assert assumed == (given is None) and "ImageNet's mean and std" in made.description
    (folder / "config.json").write_text('{"architecture": "deit_small_patch16_224"}')
    for read in (make, lambda options: described(**options)):
        with pytest.raises(ConfigError, match="holds num_heads=6, not num_heads=3"):
            read(options | {"num_heads": 3})
        with pytest.raises(ConfigError, match="regnety_002 is not a transformer"):
            read({"name": "regnety_002", "num_heads": 3})


def test_no_gradient_reaches_the_teacher_or_passes_through_it():
    """In a training step the loss depends on the image as if the teacher's logits were fixed."""
    model = models.create_model(
        "deit_tiny_distilled_patch16_224", num_classes=CLASSES, image_size=SIDE, **DEIT
    )
    state = step_lib.init_state(model, optax.identity(), jax.random.key(0), ema=False)
    image = normalized(pixels(4), STUDENT)
    target = np.eye(CLASSES, dtype=np.float32)[:4]
    weights = np.random.RandomState(3).normal(size=(3, CLASSES)).astype(np.float32)
    linear = lambda weights, image: image.mean((1, 2)) @ weights

    def loss(teacher_fn, weights, image):
        gradients = step_lib.make_gradients(
            model=model,
            augment_fn=lambda key, batch: dict(batch),
            loss_fn=lambda output, target, teacher: (((output.logits - teacher) ** 2).mean(), {}),
            base_key=rng.base_key(0),
            teacher_fn=teacher_fn,
            train_mode=False,
        )
        return gradients(state, weights, {"image": image, "target": target})[0]

    grad = lambda fn: jax.jit(jax.grad(functools.partial(loss, fn), argnums=(0, 1)))
    to_weights, to_image = grad(linear)(weights, image)
    assert not to_weights.any()
    fixed = linear(weights, image)
    _, expected = grad(lambda weights, image: fixed)(weights, image)
    assert jnp.abs(expected).max() > 0
    np.testing.assert_allclose(to_image, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("saved", ["distilled DeiT"], indirect=True)
def test_an_ensemble_answers_with_the_mean_of_the_probabilities(saved):
    options, model, _ = saved(SIDE, STUDENT)
    other, _, _ = saved(SIDE, OTHER)
    one, two = make(options), make(other)
    both = make(options | {"ensemble": (other["init"],)})
    image = normalized(pixels(), STUDENT)
    p, q, mean = (jax.nn.softmax(t.fn(t.variables, image)) for t in (one, two, both))
    assert np.abs(p - q).max() > 1e-4
    np.testing.assert_allclose(mean, (p + q) / 2, rtol=1e-5)
    assert both.model.count().macs == 2 * model.count().macs
    assert len({one.digest, two.digest, both.digest}) == 3
    found = described(**options, ensemble=(other["init"],))
    assert (found.model, found.description) == (both.model, both.description)


def test_mistakes_are_refused(saved):
    options, _, _ = saved(SIDE, STUDENT)
    with pytest.raises(ConfigError, match=f"trained on {CLASSES} classes, but the data has 7"):
        make(options, num_classes=7)
    with pytest.raises(ConfigError, match="not a regnety_004"):
        make(options | {"name": "regnety_004"})
    with pytest.raises(ConfigError, match="unknown model 'regnety_161'"):
        make(options | {"name": "regnety_161"})
    with pytest.raises(ConfigError, match="init is not set"):
        make({})
    with pytest.raises(ConfigError, match="set only one of them"):
        make(options | {"labels": "a", "record": "b"})
    with pytest.raises(ConfigError, match="label_epochs must be at least 1"):
        make(options | {"label_epochs": 0})
