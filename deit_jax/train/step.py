"""One training step and one evaluation step, pure functions of state and batch.

The same factory serves plain training, soft, hard, token and class-token
distillation: a run without a teacher passes `teacher_fn=None`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deit_jax import models, rng
from deit_jax.train_state import TrainState

PyTree = Any
Metrics = dict[str, jax.Array]
TeacherFn = Callable[[PyTree, jax.Array], jax.Array]


def init_state(
    model: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool,
    variables: PyTree | None = None,
) -> TrainState:
    """The state at step 0; with `variables`, from loaded weights instead of random ones."""
    if variables is None:
        variables = models.init_variables(model, key)
    params, stats = variables["params"], variables.get("batch_stats", {})
    copy = lambda tree: jax.tree.map(jnp.array, tree)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=stats,
        ema_params=copy(params) if ema else None,
        ema_batch_stats=copy(stats) if ema else None,
        opt_state=tx.init(params),
    )


def make_train_step(
    *,
    model: Any,
    augment_fn: Callable[[jax.Array, PyTree], dict[str, jax.Array]],
    loss_fn: Callable[..., tuple[jax.Array, Metrics]],
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    base_key: jax.Array,
    ema_decay: float = 0.0,
    teacher_fn: TeacherFn | None = None,
    accum_steps: int = 1,
    train_mode: bool = True,
) -> Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]:
    """Builds `step(state, teacher_variables, batch) -> (state, metrics)`, ready for `jax.jit`.

    Args:
      model: student, see `models.create_model`.
      augment_fn: `(key, host batch) -> image [B, h, w, 3], target [B, K]`.
      loss_fn: see `losses.make_loss`.
      tx: optimizer; `schedule` is its learning rate, for the metrics. The rate follows
        `state.step`; Adam's bias correction counts the updates that were made.
      base_key: key of the run; everything random is derived from it and the step.
      ema_decay: decay of the weight average each step, 0 for none.
      teacher_fn: `(teacher variables, image) -> logits [B, K]`, without gradient. It
        sees exactly the student's tensor (Touvron et al. 2021, section 4).
      accum_steps: the batch is worked through in so many parts, with the same result
        as at once (BatchNorm models excepted: their statistics are per part).
      train_mode: False switches stochastic depth and BatchNorm updates off, as the
        published fine-tuning at 384 did; with labels alone it also trained a distilled
        student on the mean of its heads, see `label_on` of `losses.make_loss`.

    Returns metrics as f32 scalars: `loss`, the terms of the loss, `learning_rate`,
    `grad_norm`, `param_norm`, `finite` (1 or 0), and with a teacher the share of the
    batch on which student and teacher agree. When loss or gradient is not finite the
    update is left out: parameters, averages and optimizer state keep their values, and
    `state.step` moves on all the same, so that the next step has draws of its own.
    """
    gradients = make_gradients(
        model=model,
        augment_fn=augment_fn,
        loss_fn=loss_fn,
        base_key=base_key,
        teacher_fn=teacher_fn,
        accum_steps=accum_steps,
        train_mode=train_mode,
    )

    def step(state: TrainState, teacher_variables: PyTree, batch: PyTree):
        loss, stats, terms, grads = gradients(state, teacher_variables, batch)
        new = _updated(state, grads, stats, tx, ema_decay)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda kept, tried: jnp.where(finite, tried, kept), state, new)
        metrics = terms | {
            "loss": loss,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(new.params),
            "finite": finite.astype(jnp.float32),
        }
        return dataclasses.replace(new, step=state.step + 1), metrics

    return step


def make_gradients(
    *,
    model: Any,
    augment_fn: Callable[[jax.Array, PyTree], dict[str, jax.Array]],
    loss_fn: Callable[..., tuple[jax.Array, Metrics]],
    base_key: jax.Array,
    teacher_fn: TeacherFn | None = None,
    accum_steps: int = 1,
    train_mode: bool = True,
) -> Callable[[TrainState, PyTree, PyTree], tuple[jax.Array, PyTree, Metrics, PyTree]]:
    """Builds `f(state, teacher_variables, batch) -> (loss, batch_stats, terms, gradients)`.

    The part of a training step that comes before the optimizer; arguments as in
    `make_train_step`. Gradients are f32 and shaped as the parameters.
    """

    def loss_and_stats(params, stats, chunk):
        variables = {"params": params, "batch_stats": stats} if stats else {"params": params}
        if train_mode:
            output, stats = models.apply(
                model, variables, chunk["image"], train=True, keys=chunk["keys"]
            )
        else:
            output = models.apply(model, variables, chunk["image"])
        loss, terms = loss_fn(output, chunk["target"], chunk.get("teacher"))
        if "teacher" in chunk:
            terms = terms | _agreement(output, chunk["teacher"])
        return loss, (stats, terms)

    grad_fn = jax.value_and_grad(loss_and_stats, has_aux=True)

    def gradients(state: TrainState, teacher_variables: PyTree, batch: PyTree):
        chunk = augment_fn(rng.step_key(base_key, rng.Purpose.AUGMENT, state.step), batch)
        rows = chunk["image"].shape[0]
        chunk["keys"] = rng.row_keys(rng.step_key(base_key, rng.Purpose.DROP, state.step), rows)
        if teacher_fn is not None:
            logits = teacher_fn(teacher_variables, chunk["image"])
            chunk["teacher"] = jax.lax.stop_gradient(logits.astype(jnp.float32))
        (loss, (stats, terms)), grads = _accumulate(
            grad_fn, state.params, state.batch_stats, chunk, accum_steps
        )
        return loss, stats, terms, grads

    return gradients


def _updated(
    state: TrainState, grads: PyTree, stats: PyTree, tx: optax.GradientTransformation, decay: float
) -> TrainState:
    """The state after the optimizer and the average have moved; the step is left as it is."""
    updates, opt_state = tx.update(grads, _on_schedule(state), state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(
        step=state.step,
        params=params,
        batch_stats=stats,
        ema_params=_average(state.ema_params, params, decay),
        ema_batch_stats=_average(state.ema_batch_stats, stats, decay),
        opt_state=opt_state,
    )


def _on_schedule(state: TrainState) -> PyTree:
    """The optimizer's state with the clock of its learning rate set to `state.step`.

    Left to itself the clock would stand still in steps whose update was left out.
    """
    clock = optax.ScaleByScheduleState
    return jax.tree.map(
        lambda part: clock(count=state.step) if isinstance(part, clock) else part,
        state.opt_state,
        is_leaf=lambda part: isinstance(part, clock),
    )


def _average(ema: PyTree | None, new: PyTree, decay: float) -> PyTree | None:
    if ema is None:
        return None
    return jax.tree.map(lambda e, n: e + (1.0 - decay) * (n - e), ema, new)


def _agreement(output: models.Output, teacher_logits: jax.Array) -> Metrics:
    choice = jnp.argmax(teacher_logits, axis=-1)
    agree = lambda logits: jnp.mean((jnp.argmax(logits, -1) == choice).astype(jnp.float32))
    terms = {"teacher_agreement": agree(output.logits)}
    if output.dist_logits is not None:
        terms["teacher_agreement_dist"] = agree(output.dist_logits)
    return terms


def _accumulate(grad_fn, params, stats, chunk, parts: int):
    """Mean loss, metrics and gradients over `parts` equal parts of the batch, one after another."""
    if parts == 1:
        return grad_fn(params, stats, chunk)

    # Row i goes to part i mod parts, so every part is spread over all devices as
    # the batch is, and no row moves between them.
    def split(x):
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def body(carry, part):
        total, stats = carry
        (loss, (stats, terms)), grads = grad_fn(params, stats, part)
        return (jax.tree.map(jnp.add, total, (loss, terms, grads)), stats), None

    chunks = jax.tree.map(split, chunk)
    first = jax.tree.map(lambda x: x[0], chunks)
    shapes = jax.eval_shape(grad_fn, params, stats, first)
    (loss, (_, terms)), grads = shapes
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, terms, grads))
    (total, stats), _ = jax.lax.scan(body, (zeros, stats), chunks)
    loss, terms, grads = jax.tree.map(lambda x: x / parts, total)
    return (loss, (stats, terms)), grads
