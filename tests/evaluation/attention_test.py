"""Attention maps: that they are the model's own, rollout, and that they find what is there."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest
import scipy.special

from deit_jax import cli, models, pretrained, storage
from deit_jax.errors import ConfigError
from deit_jax.evaluation import attention
from deit_jax.pretrained.convert import save_timm

TINY = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 8, "dtype": "float32"}
DISTILLED, PLAIN, THIRD = (
    "deit_tiny_distilled_patch16_224",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
)


def make(name, seed=0, **kwargs):
    model = models.create_model(name, num_classes=10, **TINY | {"image_size": 32} | kwargs)
    return model, models.init_variables(model, jax.random.key(seed))


def photos(model, count=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, *model.image_size, 3)), "f4")


def random_weights(shape, seed=0):
    scores = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 3
    return np.asarray(jax.nn.softmax(scores, axis=-1))


@pytest.mark.parametrize("name", [DISTILLED, PLAIN, THIRD])
@pytest.mark.parametrize("size", [32, 48])
def test_weights_are_those_of_the_blocks(name, size):
    """Applied to the block's own values they give what its attention gives."""
    model, variables = make(name, image_size=size)
    # Far from the start, where all weights are nearly equal.
    variables = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), variables
    )
    image = photos(model)
    output, weights = attention.attention_weights(model, variables, image)
    tokens = (size // 8) ** 2 + model.prefix_tokens
    assert weights.shape == (3, 2, 2, tokens, tokens)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
    expected = models.apply(model, variables, image)
    np.testing.assert_allclose(output.logits, expected.logits, atol=1e-5)
    _, features = models.apply(model, variables, image, capture=True)
    x, weights, params = jax.device_get((features["embedded"], weights, variables["params"]))
    for i in range(3):
        x = _block(model, params[f"blocks_{i}"], x, weights[i])
        np.testing.assert_allclose(x, features[f"blocks_{i}"], atol=2e-5, rtol=1e-4)


def _block(model, params, x, weights):
    """x after a block whose attention has these weights, in numpy, from the parameters alone."""

    def dense(y, part, name):
        return y @ params[part][name]["kernel"] + params[part][name]["bias"]

    def norm(y, name):
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + model.epsilon)
        return y * params[name]["scale"] + params[name]["bias"]

    value = dense(norm(x, "norm1"), "attn", "qkv")[..., 2 * x.shape[-1] :]
    value = value.reshape(*x.shape[:2], 2, -1)
    mixed = np.einsum("bhts,bshd->bthd", weights, value).reshape(x.shape)
    x = x + dense(mixed, "attn", "proj") * params.get("gamma_1", 1.0)
    hidden = dense(norm(x, "norm2"), "mlp", "fc1")
    hidden = hidden * (1 + scipy.special.erf(hidden / np.sqrt(2))) / 2
    return x + dense(hidden, "mlp", "fc2") * params.get("gamma_2", 1.0)


def test_fused_scanned_and_rematerialized_models_give_the_same():
    model, variables = make(DISTILLED)
    image = photos(model)
    _, expected = attention.attention_weights(model, variables, image)
    for options in ({"scan": True}, {"remat": "full"}, {"attention": "xla"}):
        _, found = attention.attention_weights(model.clone(**options), variables, image)
        np.testing.assert_array_equal(found, expected)
    # One that asks for a kernel that cannot run here.
    _, found = attention.attention_weights(model.clone(attention="cudnn"), variables, image)
    np.testing.assert_array_equal(found, expected)


def test_rows_of_rollout_sum_to_one_and_no_attention_is_the_identity():
    weights = random_weights((12, 2, 3, 50, 50))
    found = attention.rollout(weights)
    assert found.shape == (12, 2, 50, 50)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    mean = weights.astype(np.float64).mean(2)
    np.testing.assert_allclose(found[0], (mean[0] + np.eye(50)) / 2, atol=1e-6)
    np.testing.assert_allclose(found[1], (mean[1] + np.eye(50)) / 2 @ found[0], atol=1e-6)
    np.testing.assert_array_equal(
        attention.rollout(np.tile(np.eye(5), (3, 1, 1, 1)))[-1], np.eye(5)
    )


def test_a_regnet_is_refused():
    model = models.create_model("regnety_008", num_classes=10)
    with pytest.raises(ConfigError, match="RegNet has no attention"):
        attention.attention_weights(model, {}, jnp.zeros((1, 224, 224, 3)))


@pytest.fixture(scope="module")
def digits_model():
    """A model of the ten digits, of which one is somewhere on a dark image."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    small = jnp.asarray(digits.images / 8.0 - 1.0, "f4")
    labels = jnp.asarray(digits.target)
    model, variables = make(DISTILLED, patch_size=4, embed_dim=48, depth=2, num_heads=2)

    def batch(key):
        which, where = jax.random.split(key)
        which = jax.random.randint(which, (64,), 0, 1500)
        where = jax.random.randint(where, (64, 2), 0, 4) * 8
        return jax.vmap(place)(small[which], where), labels[which]

    tx = optax.adam(3e-3)

    def loss(params, key):
        image, label = batch(key)
        output = models.apply(model, {"params": params}, image)
        losses = optax.softmax_cross_entropy_with_integer_labels
        return (losses(output.logits, label) + losses(output.dist_logits, label)).mean()

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), 400)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    return model, {"params": train(variables["params"])}, small[1500:], labels[1500:]


def place(picture, corner):
    """A digit [8, 8] on a dark image [32, 32, 3]."""
    dark = jnp.full((32, 32), -1.0)
    image = jax.lax.dynamic_update_slice(dark, picture, tuple(corner))
    return jnp.repeat(image[..., None], 3, axis=-1)


@pytest.mark.long
@pytest.mark.usefixtures("optimized")
def test_a_planted_bright_patch_is_found(digits_model):
    """Class token, distillation token and rollout look at the digit, wherever it is."""
    model, variables, small, labels = digits_model
    corners = np.random.default_rng(0).integers(0, 4, (40, 2)) * 8
    images = jnp.stack([place(p, c) for p, c in zip(small[:40], corners, strict=True)])
    output, weights = attention.attention_weights(model, variables, images)
    assert (output.logits.argmax(-1) == labels[:40]).mean() > 0.6
    kinds = {"mean": np.asarray(weights[-1].mean(1)), "rollout": attention.rollout(weights)[-1]}
    for name, rows in kinds.items():
        for token in range(2):
            maps = rows[:, token, 2:].reshape(-1, 8, 8)
            found = np.array([np.unravel_index(m.argmax(), m.shape) for m in maps])
            inside = (found // 2 == corners // 8).all(axis=1).mean()
            # A sixteenth by chance; how far above it differs with what the training came to.
            assert inside > 0.5, (name, token, inside)


def photo_file(path):
    levels = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    content = io.BytesIO()
    PIL.Image.fromarray(levels).save(content, "PNG")
    path.write_bytes(content.getvalue())
    return str(path)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_sheets_of_the_command(tiny_student, tmp_path, capsys, monkeypatch):
    from deit_jax import figures

    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append((figure, path)) or path)
    (tmp_path / "b").mkdir()
    files = [photo_file(tmp_path / "a.png"), photo_file(tmp_path / "b" / "a.png")]
    command = ["attention", f"--checkpoint={tiny_student}", *files, f"--output={tmp_path}/out"]
    assert cli.main([*command, "--blocks=1,-1"]) == 0, capsys.readouterr().err
    (figure, first), (_, second) = drawn
    assert (first, second) == (tmp_path / "out" / "a.png", tmp_path / "out" / "a-2.png")
    said = texts(figure)
    columns = ["class token", "distillation token", "mean of both", "rollout, class"]
    for text in (*columns, "rollout, distillation", "block 1", "block 2", "head 2", "a.png"):
        assert text in said, text
    # The photo, two rows of five, two heads of two tokens.
    assert len(figure.axes) == 1 + 2 * 5 + 2 * 2
    assert "block 1: " not in capsys.readouterr().out
    assert cli.main([*command, "--blocks=all", "--image-size=64"]) == 0
    assert drawn[-1][0].axes[1].images[1].get_array().shape == (4, 4, 4), "patches of another size"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--blocks=0"], "--blocks takes numbers from 1 to 2"),
        (["--blocks=3"], "not '3'"),
        (["--blocks=a"], "not 'a'"),
        (["--image-size=33"], "not a multiple of patch_size"),
    ],
)
def test_mistakes_are_one_line(tiny_student, tmp_path, capsys, arguments, message):
    photo = photo_file(tmp_path / "a.png")
    assert cli.main(["attention", f"--checkpoint={tiny_student}", photo, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_weights_of_a_regnet_and_a_missing_photo_are_one_line(
    tiny_student, tmp_path, capsys, monkeypatch
):
    photo = photo_file(tmp_path / "a.png")
    assert cli.main(["attention", f"--checkpoint={tiny_student}", str(tmp_path / "no.png")]) == 2
    assert "no such file" in capsys.readouterr().err
    regnet = dataclasses.replace(
        pretrained.load_checkpoint(tiny_student), model="regnety_008", model_kwargs={}
    )
    monkeypatch.setattr(pretrained, "load_checkpoint", lambda *_, **__: regnet)
    assert cli.main(["attention", f"--checkpoint={tiny_student}", photo]) == 2
    error = capsys.readouterr().err
    assert "regnety_008 has no attention" in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def tiny_student(tmp_path_factory):
    """Weights of a tiny distilled model, in a file of timm's names."""
    kwargs = {"image_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    model = models.create_model(DISTILLED, **kwargs)
    loaded = pretrained.LoadedCheckpoint(
        variables=jax.device_get(models.init_variables(model, jax.random.key(0))),
        model=DISTILLED,
        model_kwargs=kwargs,
        class_names=None,
        source="memory",
        format="timm",
        image={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_ratio": 0.875},
        metadata={},
    )
    path = storage.path(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    save_timm(loaded, path)
    return path
