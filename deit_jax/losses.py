"""Training losses: cross-entropy or BCE on labels, soft or hard distillation on either head."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deit_jax import errors

KNOWN = {
    "base": ("ce", "bce"),
    "label_on": ("class", "mean"),
    "distillation": ("none", "soft", "hard"),
    "distill_on": ("token", "class"),
    "normalise": ("numel", "batch"),
}

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def make_loss(
    *,
    base: str = "ce",
    label_on: str = "class",
    distillation: str = "none",
    distill_on: str = "token",
    alpha: float = 0.5,
    tau: float = 3.0,
    normalise: str = "numel",
) -> LossFn:
    """The training loss `(1 - alpha) * label_loss + alpha * distillation_loss`.

    Args:
      base: 'ce', cross-entropy with soft targets; or 'bce', binary cross-entropy against
        `target > 0`, averaged over batch and classes (DeiT-III): both images of a mix
        count fully, and label smoothing must be 0 or every class would be a target.
      label_on: logits that learn the labels: 'class', those of the class token, as in
        training from scratch; or 'mean', the mean of both heads' logits, which is what the
        official code trains when it fine-tunes a distilled model in eval mode with labels
        only. With 'class' and no distillation a second head gets no gradient.
      distillation: 'none', 'soft' (tau^2 KL(teacher || student) at temperature tau) or
        'hard' (cross-entropy with the teacher's argmax, no smoothing).
      distill_on: 'token', the distillation token's head; or 'class', where both losses act
        on the class token's head (rows 2 and 3 of Table 3 of the paper).
      alpha: weight of the distillation loss; the paper's values are .5 (hard), .1 (soft).
      tau: temperature of soft distillation, 3.0 in the paper.
      normalise: divisor of the soft loss: 'numel', batch size times classes, as the
        official code does; or 'batch', the textbook mean, larger by the number of classes.

    Returns:
      `loss_fn(output, target, teacher_logits=None) -> (loss, parts)`: `output` has
      `.logits` [B, K] and `.dist_logits` [B, K] or None, `target` is [B, K] with rows that
      sum to 1, `teacher_logits` is [B, K]. `loss` and the values of `parts`
      ('label_loss', and when distilling 'distillation_loss') are f32 scalars. The teacher
      gets no gradient.

    Raises:
      ConfigError: for an unknown or contradictory option at once; on the first call, for a
        model without the head that is asked for, missing or unasked teacher logits, or
        shapes that do not agree.
    """
    options = _Options(base, label_on, distillation, distill_on, alpha, tau, normalise)
    options.check()
    return functools.partial(_loss, options)


@dataclasses.dataclass(frozen=True)
class _Options:
    base: str
    label_on: str
    distillation: str
    distill_on: str
    alpha: float
    tau: float
    normalise: str

    def check(self) -> None:
        for key, known in KNOWN.items():
            if getattr(self, key) not in known:
                raise errors.unknown(f"loss.{key}", getattr(self, key), known)
        if not 0.0 <= self.alpha <= 1.0:
            raise errors.ConfigError(f"loss.alpha is a share between 0 and 1, not {self.alpha}")
        if not self.tau > 0.0:
            raise errors.ConfigError(f"loss.tau is a temperature above 0, not {self.tau}")
        if self.distillation != "none" and self.label_on == "mean":
            raise errors.ConfigError(
                "loss.label_on='mean' trains both heads on the labels and leaves none for the "
                "teacher; use label_on='class' when distilling"
            )


def _loss(
    options: _Options, output: Any, target: jax.Array, teacher_logits: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    _check_heads(output, options.label_on, options.distillation, options.distill_on)
    _check_teacher(output.logits, teacher_logits, options.distillation)
    student = output.logits
    if options.label_on == "mean":
        student = 0.5 * (_f32(output.logits) + _f32(output.dist_logits))
    if student.shape != target.shape:
        raise errors.ConfigError(
            f"logits {student.shape} and target {target.shape} differ in shape; both are [B, K]"
        )
    label_loss = (cross_entropy if options.base == "ce" else bce)(student, target)
    if options.distillation == "none":
        return label_loss, {"label_loss": label_loss}
    student = output.dist_logits if options.distill_on == "token" else output.logits
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    if options.distillation == "hard":
        distilled = hard_distillation(student, teacher_logits)
    else:
        distilled = soft_distillation(
            student, teacher_logits, tau=options.tau, normalise=options.normalise
        )
    loss = (1.0 - options.alpha) * label_loss + options.alpha * distilled
    return loss, {"label_loss": label_loss, "distillation_loss": distilled}


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over the batch of `-sum(target * log_softmax(logits))`; both [B, K], f32 scalar."""
    return -jnp.mean(jnp.sum(_f32(target) * jax.nn.log_softmax(_f32(logits)), axis=-1))


def bce(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Mean over batch and classes of the binary cross-entropy with `target > 0`; both [B, K]."""
    logits = _f32(logits)
    positive = target > 0
    return jnp.mean(jax.nn.softplus(jnp.where(positive, -logits, logits)))


def hard_distillation(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """Cross-entropy with the class that the teacher finds most likely; both [B, K]."""
    label = jnp.argmax(teacher_logits, axis=-1)
    log_p = jax.nn.log_softmax(_f32(logits))
    return -jnp.mean(jnp.take_along_axis(log_p, label[:, None], axis=-1))


def soft_distillation(
    logits: jax.Array, teacher_logits: jax.Array, *, tau: float, normalise: str = "numel"
) -> jax.Array:
    """`tau^2 KL(teacher || student)` of the tempered distributions; both [B, K], f32 scalar.

    Summed over batch and classes, divided by B * K ('numel') or by B ('batch').
    """
    log_p = jax.nn.log_softmax(_f32(logits) / tau)
    log_q = jax.nn.log_softmax(_f32(teacher_logits) / tau)
    divergence = jnp.sum(jnp.exp(log_q) * (log_q - log_p))
    divisor = logits.size if normalise == "numel" else logits.shape[0]
    return divergence * (tau * tau / divisor)


def _f32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _check_heads(output: Any, label_on: str, distillation: str, distill_on: str) -> None:
    if output.dist_logits is not None:
        return
    if label_on == "mean":
        raise errors.ConfigError(
            "loss.label_on='mean' needs a model with a distillation head, such as "
            "deit_base_distilled_patch16_224; use label_on='class' for a plain model"
        )
    if distillation != "none" and distill_on == "token":
        raise errors.ConfigError(
            "loss.distill_on='token' needs a model with a distillation head, such as "
            "deit_base_distilled_patch16_224; use distill_on='class' for a plain model"
        )


def _check_teacher(logits: jax.Array, teacher_logits: jax.Array | None, distillation: str) -> None:
    if distillation == "none":
        if teacher_logits is not None:
            raise errors.ConfigError(
                "there are teacher logits but loss.distillation='none'; remove the teacher or "
                "use 'soft' or 'hard'"
            )
        return
    if teacher_logits is None:
        raise errors.ConfigError(
            f"loss.distillation={distillation!r} needs a teacher's logits; give a teacher or "
            "use distillation='none'"
        )
    if teacher_logits.shape != logits.shape:
        raise errors.ConfigError(
            f"teacher logits {teacher_logits.shape} and student logits {logits.shape} differ in "
            "shape; teacher and student must know the same classes"
        )
