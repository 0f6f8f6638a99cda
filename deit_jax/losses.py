"""Training losses: on the labels, and from a teacher's logits on either head.

A new label loss is a function `(logits, target) -> loss` and a line in `LABEL_LOSSES`, a new
distillation loss `(logits, teacher_logits) -> loss` and a line in `DISTILLATION_LOSSES`. All
arguments are [B, K] of any float type, rows of `target` sum to 1, and the loss is an f32
scalar. Keyword-only parameters are options of the `loss` section while the loss is chosen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import builders
from deit_jax.errors import ConfigError, check_at_most

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy with soft targets."""
    return -jnp.mean(jnp.sum(_f32(target) * jax.nn.log_softmax(_f32(logits)), axis=-1))


def binary_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Binary cross-entropy with every target above 0 as a positive (DeiT-III).

    Averaged over batch and classes. Both images of a mix count fully; label smoothing must be
    0, or every class would be a positive.
    """
    logits = _f32(logits)
    positive = target > 0
    return jnp.mean(jax.nn.softplus(jnp.where(positive, -logits, logits)))


def hard_distillation(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Cross-entropy with the teacher's argmax, without label smoothing."""
    label = jnp.argmax(teacher_logits, axis=-1)
    log_p = jax.nn.log_softmax(_f32(logits))
    return -jnp.mean(jnp.take_along_axis(log_p, label[:, None], axis=-1))


def soft_distillation(
    logits: jax.Array, teacher_logits: jax.Array, *, tau: float = 3.0, reduction: str = "numel"
) -> jax.Array:
    """KL divergence between teacher and student at temperature tau, times tau squared.

    Args:
      tau: temperature of both distributions, 3.0 in the paper.
      reduction: what the sum over batch and classes is divided by: 'numel', batch size times
        classes, as the official code does; or 'batch', the textbook mean, larger by the
        number of classes.

    Raises:
      ConfigError: tau is not above 0, or the reduction is unknown.
    """
    if not tau > 0.0:
        raise ConfigError(f"tau must be above 0, not {tau}")
    check_at_most(1000, tau=tau)
    divisors = {"numel": logits.size, "batch": logits.shape[0]}
    divisor = builders.choose(divisors, reduction, "reduction")
    log_p = jax.nn.log_softmax(_f32(logits) / tau)
    log_q = jax.nn.log_softmax(_f32(teacher_logits) / tau)
    divergence = jnp.sum(jnp.exp(log_q) * (log_q - log_p))
    return divergence * (tau * tau / divisor)


def class_head(output: Any) -> jax.Array:
    """Class head."""
    return output.logits


def distillation_head(output: Any) -> jax.Array:
    """Distillation head."""
    return _dist_logits(output, "distill_on")


def mean_of_heads(output: Any) -> jax.Array:
    """Mean of class and distillation head."""
    return 0.5 * (_f32(output.logits) + _f32(_dist_logits(output, "label_on")))


LABEL_LOSSES = {"ce": cross_entropy, "bce": binary_cross_entropy}
DISTILLATION_LOSSES = {"hard": hard_distillation, "soft": soft_distillation}
# Those that use nothing of the teacher's logits but which is the largest.
CHOICE_ONLY = {"hard"}
LABEL_HEADS = {"class": class_head, "mean": mean_of_heads}
DISTILLED_HEADS = {"token": distillation_head, "class": class_head}


@builders.chooses(distill_on=DISTILLED_HEADS)
def add_distillation(
    label_loss: Callable,
    distillation_loss: Callable,
    *,
    distill_on: str = "token",
    alpha: float = 0.5,
) -> LossFn:
    """Weighted sum of `label_loss(output, target)` and `distillation_loss(student, teacher)`.

    Args:
      distill_on: head that learns from the teacher: 'token', that of the distillation token;
        or 'class', where both losses act on the class token's head (rows 2 and 3 of Table 3).
      alpha: weight of the distillation loss; the paper's values are .5 (hard), .1 (soft).
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha must be between 0 and 1, not {alpha}")
    head = builders.choose(DISTILLED_HEADS, distill_on, "distill_on")
    teacher_loss = _on_head(head, distillation_loss, "teacher logits")

    def loss_fn(output: Any, target: jax.Array, teacher_logits: jax.Array | None = None):
        if teacher_logits is None:
            raise ValueError("a loss with distillation needs the teacher's logits")
        labels = label_loss(output, target)
        distilled = teacher_loss(output, jax.lax.stop_gradient(teacher_logits))
        loss = (1.0 - alpha) * labels + alpha * distilled
        return loss, {"label_loss": labels, "distillation_loss": distilled}

    return loss_fn


def _distillation(name: str) -> list[Callable]:
    loss = builders.choose({"none": None} | DISTILLATION_LOSSES, name, "distillation")
    return [loss, add_distillation] if loss else []


@builders.chooses(base=LABEL_LOSSES, label_on=LABEL_HEADS, distillation=_distillation)
def make_loss(
    *, base: str = "ce", label_on: str = "class", distillation: str = "none", **options: Any
) -> LossFn:
    """The training loss `(1 - alpha) * label_loss + alpha * distillation_loss`.

    Args:
      base: the label loss, a name in `LABEL_LOSSES`.
      label_on: logits that learn the labels: 'class', those of the class token, as in
        training from scratch; or 'mean', the mean of both heads' logits, which is what the
        official code trains when it fine-tunes a distilled model in eval mode with labels
        only. With 'class' and no distillation a second head gets no gradient.
      distillation: 'none', or a name in `DISTILLATION_LOSSES`.
      options: those of the label loss, of the distillation loss and of `add_distillation`.

    Returns:
      `loss_fn(output, target, teacher_logits=None) -> (loss, parts)`: `output` has `.logits`
      and `.dist_logits` (or None), all arrays are [B, K]. `loss` and the values of `parts`
      ('label_loss', and when distilling 'distillation_loss') are f32 scalars. The teacher
      gets no gradient.

    Raises:
      ConfigError: for an unknown or contradictory option at once; on the first call, for a
        model without the distillation head that an option names. The returned function
        raises ValueError for missing or surplus teacher logits and for shapes that differ.
    """
    chosen = {"base": base, "label_on": label_on, "distillation": distillation}
    surplus = sorted(options.keys() - builders.options(make_loss, chosen | options).keys())
    if surplus:
        raise TypeError(f"options {surplus} do not apply to the loss with {chosen}")
    loss = builders.bind(LABEL_LOSSES[base], options)
    label_loss = _on_head(LABEL_HEADS[label_on], loss, "target")
    if distillation == "none":
        return _without_teacher(label_loss)
    if LABEL_HEADS[label_on] is mean_of_heads:
        raise ConfigError(
            "label_on=mean trains both heads on the labels and leaves none for the teacher; "
            "use label_on=class when distilling"
        )
    distillation_loss, add = (builders.bind(f, options) for f in _distillation(distillation))
    return add(label_loss, distillation_loss)


def _without_teacher(label_loss: Callable) -> LossFn:
    def loss_fn(output: Any, target: jax.Array, teacher_logits: jax.Array | None = None):
        if teacher_logits is not None:
            raise ValueError("a loss without distillation has no use for a teacher's logits")
        loss = label_loss(output, target)
        return loss, {"label_loss": loss}

    return loss_fn


def _on_head(head: Callable, loss: Callable, name: str) -> Callable:
    """`(output, other) -> loss` of a head's logits and `other`, called `name` in messages."""
    # Tracing a loss is what makes it check its options, here before anything is built on it.
    jax.eval_shape(loss, *2 * [jax.ShapeDtypeStruct((1, 2), jnp.float32)])

    def on_head(output: Any, other: jax.Array) -> jax.Array:
        student = head(output)
        if student.shape != other.shape:
            raise ValueError(f"logits {student.shape} and {name} {other.shape} differ in shape")
        return loss(student, other)

    return on_head


def _dist_logits(output: Any, option: str) -> jax.Array:
    if output.dist_logits is None:
        raise ConfigError(
            f"config.loss.{option} needs a model with a distillation head, such as "
            f"deit_base_distilled_patch16_224; set {option}=class for a plain model"
        )
    return output.dist_logits


def _f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)
