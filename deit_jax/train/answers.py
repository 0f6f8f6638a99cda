"""The part of a step that does not depend on the student: its images, and the teacher's answers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deit_jax import rng
from deit_jax.teacher import PREFIX, Kind

PyTree = Any
AugmentFn = Callable[[jax.Array, PyTree], dict[str, jax.Array]]
TeacherFn = Callable[[PyTree, jax.Array], jax.Array]


def fence(arrays: PyTree, step: jax.Array) -> PyTree:
    """`arrays`, which the compiler neither fuses with what makes them nor with what uses them.

    XLA takes barriers out before it fuses for CPUs, so there it is a branch that is always taken,
    which nobody knows before the step is.
    """
    same = lambda arrays: arrays
    zeros = lambda arrays: jax.tree.map(jnp.zeros_like, arrays)
    branch = lambda arrays, step: jax.lax.cond(step >= 0, same, zeros, arrays)
    barrier = lambda arrays, step: jax.lax.optimization_barrier(arrays)
    return jax.lax.platform_dependent(arrays, step, cpu=branch, default=barrier)


class Labels(NamedTuple):
    """What the teacher's logits become, and where they come from without a teacher.

    Attributes:
      used: what the loss uses of the logits; None for all.
      stored: what the batch has under `teacher.PREFIX` in place of a teacher.
      record: from logits to the arrays that each step returns as its metric `labels`.
      period: steps after which images repeat, and their labels with them; None: never.
    """

    used: Kind | None = None
    stored: Kind | None = None
    record: Callable[[Any], dict[str, jax.Array]] | None = None
    period: int | None = None


NO_LABELS = Labels()


def make_teaching(
    augment_fn: AugmentFn, base_key: jax.Array, teacher_fn: TeacherFn | None, labels: Labels
) -> tuple[Callable, Callable]:
    """The part of a step that does not depend on the student: its images, the teacher's logits.

    Returns `augment(step, batch) -> inputs` and `answer(teacher_variables, image, batch) ->
    logits f32 [B, K]`, None without distillation. With it, images and answer are behind a
    barrier: a compiler that fused them with the student, or the images with the teacher, would
    round differently where the teacher is live, recorded or replaced by its labels.
    """

    def augment(step: jax.Array, batch: PyTree) -> dict[str, jax.Array]:
        step = step if labels.period is None else step % labels.period
        inputs = augment_fn(rng.step_key(base_key, rng.Purpose.AUGMENT, step), batch)
        if teacher_fn is None and labels.stored is None:
            return inputs
        names = ("image", "target")
        fixed = fence(tuple(inputs[name] for name in names), step)
        return inputs | dict(zip(names, fixed, strict=True))

    def answer(teacher_variables: PyTree, image: jax.Array, batch: PyTree) -> jax.Array | None:
        if labels.stored is not None:
            names = labels.stored.row.names or ()
            return labels.stored.decode({name: batch[PREFIX + name] for name in names})
        if teacher_fn is None:
            return None
        with jax.named_scope("teacher"):
            logits = teacher_fn(teacher_variables, image).astype(jnp.float32)
        return jax.lax.optimization_barrier(jax.lax.stop_gradient(logits))

    return augment, answer


def make_label_step(
    augment_fn: AugmentFn, base_key: jax.Array, teacher_fn: TeacherFn, labels: Labels
) -> Callable[[jax.Array, PyTree, PyTree], dict[str, jax.Array]]:
    """Builds `labels(step, teacher_variables, batch)`: what a training step would record."""
    augment, answer = make_teaching(augment_fn, base_key, teacher_fn, labels)

    def label_step(step: jax.Array, teacher_variables: PyTree, batch: PyTree):
        assert labels.record
        logits = answer(teacher_variables, augment(step, batch)["image"], batch)
        return labels.record(logits)

    return label_step
