"""Losses against timm and torch, and the combinations that are refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from deit_jax import builders, errors, losses
from deit_jax.train import schema


class Heads(NamedTuple):
    logits: jax.Array
    dist_logits: jax.Array | None


@pytest.fixture(scope="module")
def stored(vectors):
    return dict(np.load(vectors / "losses.npz"))


def close(value, reference):
    np.testing.assert_allclose(value, reference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "name, loss",
    [
        ("ce_mixed", lambda x, s: losses.cross_entropy(x, s["mixed_smooth"])),
        ("ce_hard", lambda x, s: losses.cross_entropy(x, np.eye(20, dtype="f")[s["label"]])),
        (
            "ce_smooth",
            lambda x, s: losses.cross_entropy(x, 0.9 * np.eye(20, dtype="f")[s["label"]] + 0.005),
        ),
        ("bce", lambda x, s: losses.binary_cross_entropy(x, s["mixed"])),
        ("distil_hard", lambda x, s: losses.hard_distillation(x, s["teacher"])),
        *[
            (
                f"distil_soft_{n}_tau{tau}",
                lambda x, s, n=n, tau=tau: losses.soft_distillation(
                    x, s["teacher"], tau=float(tau), reduction=n
                ),
            )
            for n in ("numel", "batch")
            for tau in (1, 3)
        ],
    ],
)
def test_value_and_gradient_equal_the_reference(stored, name, loss):
    logits = stored["dist_logits" if name.startswith("distil") else "logits"]
    value, grad = jax.value_and_grad(lambda x: loss(x, stored))(jnp.asarray(logits))
    assert value.dtype == jnp.float32
    close(value, stored[name])
    close(grad, stored[f"{name}_grad"])


@pytest.mark.parametrize(
    "options, alpha, distilled",
    [
        ({"distillation": "hard"}, 0.5, "distil_hard"),
        ({"distillation": "soft", "alpha": 0.1}, 0.1, "distil_soft_numel_tau3"),
        (
            {"distillation": "soft", "alpha": 0.3, "tau": 1.0, "reduction": "batch"},
            0.3,
            "distil_soft_batch_tau1",
        ),
    ],
)
@pytest.mark.parametrize("distill_on", ["token", "class"])
def test_total_is_the_weighted_sum_on_the_right_heads(
    stored, options, alpha, distilled, distill_on
):
    loss_fn = losses.make_loss(distill_on=distill_on, **options)
    # On the class token both losses act on one head, whose reference needs dist_logits there.
    if distill_on == "class":
        output = Heads(jnp.asarray(stored["dist_logits"]), None)
        label = losses.cross_entropy(output.logits, stored["mixed_smooth"])
    else:
        output = Heads(jnp.asarray(stored["logits"]), jnp.asarray(stored["dist_logits"]))
        label = stored["ce_mixed"]
    total, parts = jax.jit(loss_fn)(output, stored["mixed_smooth"], stored["teacher"])
    close(parts["label_loss"], label)
    close(parts["distillation_loss"], stored[distilled])
    close(total, (1 - alpha) * label + alpha * stored[distilled])


def test_labels_alone_train_the_class_head_or_the_mean_of_both(stored):
    output = Heads(jnp.asarray(stored["logits"]), jnp.asarray(stored["dist_logits"]))
    target = stored["mixed_smooth"]

    def grads(label_on):
        return jax.grad(lambda o: losses.make_loss(label_on=label_on)(o, target)[0])(output)

    assert np.abs(grads("class").dist_logits).max() == 0
    mean = grads("mean")
    np.testing.assert_array_equal(mean.logits, mean.dist_logits)
    total, parts = losses.make_loss(label_on="mean")(output, target)
    close(total, losses.cross_entropy((output.logits + output.dist_logits) / 2, target))
    assert set(parts) == {"label_loss"}


def test_teacher_gets_no_gradient(stored):
    output = Heads(jnp.asarray(stored["logits"]), jnp.asarray(stored["dist_logits"]))
    loss_fn = losses.make_loss(distillation="soft")
    grad = jax.grad(lambda t: loss_fn(output, stored["mixed"], t)[0])(stored["teacher"])
    assert np.abs(grad).max() == 0


def test_half_precision_logits_are_summed_in_f32(stored):
    half = jnp.asarray(stored["logits"], jnp.bfloat16)
    exact = losses.cross_entropy(half.astype(jnp.float32), stored["mixed"])
    np.testing.assert_array_equal(losses.cross_entropy(half, stored["mixed"]), exact)


def test_bce_counts_both_images_of_a_mix_fully():
    logits = jnp.zeros((1, 4))
    target = jnp.array([[0.9, 0.1, 0.0, 0.0]])
    grad = jax.grad(losses.binary_cross_entropy)(logits, target)
    np.testing.assert_allclose(grad, [[-0.125, -0.125, 0.125, 0.125]])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"base": "mse"}, "base 'mse'; known: bce, ce"),
        ({"label_on": "token"}, "label_on 'token'; known: class, mean"),
        ({"distillation": "sof"}, "distillation 'sof'; known: soft, hard, none"),
        ({"distillation": "hard", "distill_on": "mean"}, "distill_on 'mean'; known: class, token"),
        ({"distillation": "hard", "alpha": 1.5}, "^alpha must be between 0 and 1, not 1.5"),
        ({"distillation": "soft", "tau": 0.0}, "^tau must be above 0, not 0.0"),
        ({"distillation": "soft", "reduction": "mean"}, "reduction 'mean'; known: .*numel"),
        ({"distillation": "hard", "label_on": "mean"}, "^label_on=mean .* use label_on=class"),
    ],
)
def test_impossible_options_are_refused_at_build_time(options, words):
    with pytest.raises(errors.ConfigError, match=words):
        losses.make_loss(**options)


@pytest.mark.parametrize(
    "options, second_head, teacher, words",
    [
        ({"distillation": "hard"}, None, (2, 3), "set distill_on=class"),
        ({"label_on": "mean"}, None, None, "set label_on=class"),
        ({"distillation": "hard", "distill_on": "class"}, None, None, "needs the teacher's"),
        ({"distillation": "soft"}, (2, 3), (2, 5), "teacher logits"),
        ({}, None, (2, 3), "no use for a teacher"),
    ],
)
def test_impossible_combinations_are_refused_at_the_first_call(
    options, second_head, teacher, words
):
    zeros = lambda shape: None if shape is None else jnp.zeros(shape)
    loss_fn = losses.make_loss(**options)
    with pytest.raises(ValueError, match=words) as caught:
        loss_fn(Heads(zeros((2, 3)), zeros(second_head)), zeros((2, 3)), zeros(teacher))
    # A model without the head is what a user can mend, wrong arguments are not.
    assert isinstance(caught.value, errors.ConfigError) == ("_on=class" in words)


def test_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="target"):
        losses.make_loss()(Heads(jnp.zeros((2, 3)), None), jnp.zeros((2, 4)))


LABELS = {"base", "label_on", "distillation"}
TEACHER = LABELS | {"distill_on", "alpha"}


@pytest.mark.parametrize(
    "section, known",
    [
        ({}, LABELS),
        ({"base": "bce"}, LABELS),
        ({"distillation": "hard"}, TEACHER),
        ({"distillation": "soft"}, TEACHER | {"tau", "reduction"}),
    ],
)
def test_options_are_those_of_the_chosen_losses(section, known):
    assert set(builders.options(losses.make_loss, section)) == known
    for option in (TEACHER | {"tau", "reduction"}) - known:
        given = {"model": {"name": "deit_tiny_patch16_224"}, "loss": section | {option: 0.5}}
        with pytest.raises(errors.ConfigError, match=f"unknown key config.loss.{option};"):
            schema.resolve(ConfigDict(given))
        with pytest.raises(TypeError, match=option):
            losses.make_loss(**section | {option: 0.5})


def focal(logits, target, *, gamma: float = 2.0):
    """Focal loss, cross-entropy with less weight on easy images."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.sum(target * (1 - jnp.exp(log_p)) ** gamma * log_p, axis=-1))


def test_a_label_loss_is_one_function_and_one_line(stored, monkeypatch):
    monkeypatch.setitem(losses.LABEL_LOSSES, "focal", focal)
    own = {"base": "focal", "gamma": 1.5}
    assert set(builders.options(losses.make_loss, own)) == LABELS | {"gamma"}
    output = Heads(jnp.asarray(stored["logits"]), jnp.asarray(stored["dist_logits"]))
    target, teacher = stored["mixed_smooth"], stored["teacher"]
    total, parts = losses.make_loss(**own)(output, target)
    close(total, focal(output.logits, target, gamma=1.5))
    assert abs(float(total - focal(output.logits, target))) > 1e-3
    # Beside a teacher both losses get the options that are theirs.
    both = losses.make_loss(**own, distillation="soft", tau=1.0, alpha=0.25)
    mixed, parts = both(output, target, teacher)
    close(parts["label_loss"], total)
    close(mixed, 0.75 * total + 0.25 * stored["distil_soft_numel_tau1"])
    with pytest.raises(TypeError, match="gamma"):
        losses.make_loss(base="ce", gamma=1.5)


def test_a_distillation_loss_is_one_function_and_one_line(stored, monkeypatch):
    def squared(logits, teacher_logits, *, scale: float = 1.0):
        """Squared distance of the logits."""
        return scale * jnp.mean((logits - teacher_logits) ** 2)

    monkeypatch.setitem(losses.DISTILLATION_LOSSES, "squared", squared)
    options = {"distillation": "squared", "alpha": 1.0, "distill_on": "class", "scale": 3.0}
    assert set(builders.options(losses.make_loss, options)) == TEACHER | {"scale"}
    output = Heads(jnp.asarray(stored["logits"]), None)
    total, _ = losses.make_loss(**options)(output, stored["mixed"], stored["teacher"])
    close(total, 3 * np.mean((stored["logits"] - stored["teacher"]) ** 2))


def test_every_loss_and_head_says_what_it_is():
    tables = (losses.LABEL_LOSSES, losses.DISTILLATION_LOSSES)
    tables += (losses.LABEL_HEADS, losses.DISTILLED_HEADS)
    for table in tables:
        for name, entry in table.items():
            assert builders.headline(entry), name
