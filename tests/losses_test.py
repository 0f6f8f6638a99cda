"""Losses against timm and torch, and the combinations that are refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import errors, losses


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
        ("bce", lambda x, s: losses.bce(x, s["mixed"])),
        ("distil_hard", lambda x, s: losses.hard_distillation(x, s["teacher"])),
        *[
            (
                f"distil_soft_{n}_tau{tau}",
                lambda x, s, n=n, tau=tau: losses.soft_distillation(
                    x, s["teacher"], tau=float(tau), normalise=n
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
            {"distillation": "soft", "alpha": 0.3, "tau": 1.0, "normalise": "batch"},
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
    grad = jax.grad(losses.bce)(logits, target)
    np.testing.assert_allclose(grad, [[-0.125, -0.125, 0.125, 0.125]])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"base": "mse"}, "ce"),
        ({"distillation": "sof"}, "soft"),
        ({"alpha": 1.5}, "alpha"),
        ({"tau": 0.0}, "tau"),
        ({"distillation": "hard", "label_on": "mean"}, "label_on='class'"),
    ],
)
def test_impossible_options_are_refused_at_build_time(options, words):
    with pytest.raises(errors.ConfigError, match=words):
        losses.make_loss(**options)


@pytest.mark.parametrize(
    "options, second_head, teacher, words",
    [
        ({"distillation": "hard"}, None, (2, 3), "distill_on='class'"),
        ({"label_on": "mean"}, None, None, "label_on='class'"),
        ({"distillation": "hard", "distill_on": "class"}, None, None, "give a teacher"),
        ({"distillation": "soft"}, (2, 3), (2, 5), "same classes"),
        ({}, None, (2, 3), "remove the teacher"),
    ],
)
def test_impossible_combinations_are_refused_at_the_first_call(
    options, second_head, teacher, words
):
    zeros = lambda shape: None if shape is None else jnp.zeros(shape)
    loss_fn = losses.make_loss(**options)
    with pytest.raises(errors.ConfigError, match=words):
        loss_fn(Heads(zeros((2, 3)), zeros(second_head)), zeros((2, 3)), zeros(teacher))


def test_target_of_another_shape_is_refused():
    with pytest.raises(errors.ConfigError, match="target"):
        losses.make_loss()(Heads(jnp.zeros((2, 3)), None), jnp.zeros((2, 4)))
