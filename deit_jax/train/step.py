"""One training step, a pure function of state and batch.

A run without distillation passes `teacher_fn=None`; one with stored labels has them in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deit_jax import builders, models, rng, trees
from deit_jax.distributed import sharding
from deit_jax.losses import LossFn
from deit_jax.train.answers import NO_LABELS, AugmentFn, Labels, TeacherFn, make_teaching
from deit_jax.train.loss_scale import LOSS_SCALES, Rule, make_rule
from deit_jax.train_state import TrainState

PyTree = Any
Metrics = dict[str, jax.Array]


def init_state(
    model: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool,
    variables: PyTree = None,
    scaling: Rule | None = None,
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
        loss_scale=scaling and scaling.first_state(),
    )


def make_gradients(
    model: Any,
    augment_fn: AugmentFn,
    loss_fn: LossFn,
    base_key: jax.Array,
    teacher_fn: TeacherFn | None = None,
    labels: Labels = NO_LABELS,
    *,
    accum_steps: int = 1,
    train_mode: bool = True,
) -> Callable[[TrainState, PyTree, PyTree], tuple[jax.Array, PyTree, Metrics, PyTree]]:
    """Builds `f(state, teacher_variables, batch) -> (loss, batch_stats, terms, gradients)`.

    The part of a training step that comes before the optimizer. Gradients are f32 and shaped
    as the parameters. Where the state has a scale of the loss, they are those of the scaled
    loss, divided by it.

    Args:
      model: student, see `models.create_model`.
      augment_fn: `(key, host batch) -> image [B, h, w, 3], target [B, K]`.
      loss_fn: see `losses.make_loss`.
      base_key: key of the run; everything random is derived from it and the step.
      teacher_fn: `(teacher variables, image) -> logits [B, K]`, without gradient. It
        sees exactly the student's tensor (Touvron et al. 2021, section 4).
      labels: see `answers.Labels`.
      accum_steps: split the batch into this many micro-batches, with the same result as
        for the whole batch (except with BatchNorm: its statistics are per micro-batch).
      train_mode: False switches stochastic depth and BatchNorm updates off, as the
        published fine-tuning at 384 did; with labels alone it also trained a distilled
        student on the mean of its heads, see `label_on` of `losses.make_loss`.
    """

    def loss_and_stats(scale, params, stats, inputs):
        variables = {"params": params, "batch_stats": stats} if stats else {"params": params}
        if train_mode:
            output, stats = models.apply(
                model, variables, inputs["image"], train=True, keys=inputs["keys"]
            )
        else:
            output = models.apply(model, variables, inputs["image"])
        logits = inputs.get("teacher")
        if logits is not None and labels.used:
            logits = labels.used.decode(logits)
        with jax.named_scope("loss"):
            loss, terms = loss_fn(output, inputs["target"], logits)
            if logits is not None:
                terms = terms | _agreement(output, logits)
        return loss if scale is None else loss * scale, (stats, terms)

    augment, answer = make_teaching(augment_fn, base_key, teacher_fn, labels)

    def gradients(state: TrainState, teacher_variables: PyTree, batch: PyTree):
        inputs = augment(state.step, batch)
        rows = inputs["image"].shape[0]
        inputs["keys"] = rng.row_keys(rng.step_key(base_key, rng.Purpose.DROP, state.step), rows)
        logits = answer(teacher_variables, inputs["image"], batch)
        if logits is not None:
            used = labels.used.encode(logits) if labels.used else logits
            inputs["teacher"] = jax.lax.optimization_barrier(used)
        scale = state.loss_scale["scale"] if state.loss_scale else None
        grad_fn = jax.value_and_grad(functools.partial(loss_and_stats, scale), has_aux=True)
        (loss, (stats, terms)), grads = _accumulate(
            grad_fn, state.params, state.batch_stats, inputs, accum_steps
        )
        if scale is not None:
            loss, grads = jax.tree.map(lambda x: x / scale, (loss, grads))
        if labels.record is not None:
            terms["labels"] = labels.record(logits)
        return loss, stats, terms, grads

    return gradients


@builders.chooses(loss_scale=LOSS_SCALES, **{"": lambda _: [make_gradients]})
def make_train_step(
    model: Any,
    augment_fn: AugmentFn,
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    base_key: jax.Array,
    teacher_fn: TeacherFn | None = None,
    max_nonfinite: int = 1,
    labels: Labels = NO_LABELS,
    *,
    ema_decay: float = 0.0,
    loss_scale: str = "auto",
    **options: Any,
) -> Callable[[TrainState, PyTree, PyTree], tuple[TrainState, Metrics]]:
    """Builds `step(state, teacher_variables, batch) -> (state, metrics)`, ready for `jax.jit`.

    Args:
      model, augment_fn, loss_fn, base_key, teacher_fn, labels: see `make_gradients`.
      tx: optimizer; `schedule` is its learning rate, for the metrics. The rate follows
        `state.step`; Adam's bias correction counts the updates that were made.
      max_nonfinite: steps in a row with a non-finite loss or gradient that halt the
        training, see `nonfinite`.
      ema_decay: decay of the EMA of the weights, per step; 0 for none.
      loss_scale: auto | none | static | dynamic, see `loss_scale`.
      options: of `make_gradients`, and of the chosen scale.

    Returns metrics as f32 scalars: `loss`, the terms of the loss, `learning_rate`,
    `grad_norm`, `param_norm`, with a teacher the share of the batch on which student and
    teacher agree, `finite` (1 or 0), and the new state's `nonfinite_steps` and
    `nonfinite_in_a_row`; with a scaled loss also `loss_scale`, `overflowed` (1 or 0) and
    `overflowed_steps`; with `labels.record` its arrays, as `labels`. When loss or gradient is
    not finite, parameters, statistics, EMA and optimizer state keep their values; `state.step`
    still increases, so that the next step has different draws. After `max_nonfinite` such steps
    in a row the state, its step number included, never changes again. Steps whose scaled
    gradients overflow are left out too, and not counted among these.
    """
    scaling = make_rule(model.dtype, options | {"loss_scale": loss_scale})
    of_scale = builders.keywords(builders.choose(LOSS_SCALES, loss_scale, "loss_scale"))
    options = {key: value for key, value in options.items() if key not in of_scale}
    gradients = make_gradients(model, augment_fn, loss_fn, base_key, teacher_fn, labels, **options)

    def step(state: TrainState, teacher_variables: PyTree, batch: PyTree):
        loss, stats, terms, grads = gradients(state, teacher_variables, batch)
        recorded = {"labels": terms.pop("labels")} if labels.record else {}
        new = _updated(state, grads, stats, tx, ema_decay)
        grad_norm = _norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        running = state.nonfinite_in_a_row < max_nonfinite
        overflowed = jnp.asarray(False)
        if scaling is not None:
            overflowed = running & ~finite & jnp.isfinite(loss)
            overflowed &= scaling.tolerates(state.loss_scale)
        ok, bad = running & finite, running & ~finite & ~overflowed
        new = _where(ok, new, state)
        new = dataclasses.replace(
            new,
            step=state.step + running,
            nonfinite_steps=state.nonfinite_steps + bad,
            nonfinite_in_a_row=jnp.where(ok, 0, state.nonfinite_in_a_row + bad),
        )
        metrics = terms | {
            "loss": loss,
            "learning_rate": schedule(state.step),
            "grad_norm": grad_norm,
            "param_norm": _norm(new.params),
            "finite": finite,
            "nonfinite_steps": new.nonfinite_steps,
            "nonfinite_in_a_row": new.nonfinite_in_a_row,
        }
        if scaling is not None:
            scale = scaling.next_state(state.loss_scale, ok, overflowed)
            new = dataclasses.replace(new, loss_scale=scale)
            metrics |= {
                "loss_scale": state.loss_scale["scale"],
                "overflowed": overflowed,
                "overflowed_steps": scale["overflowed_steps"],
            }
        return new, recorded | {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}

    return step


def jit(step: Callable, batch_sharding: jax.sharding.NamedSharding) -> Callable:
    """`step` compiled when first called, the batch sharded by rows, the state donated."""
    return jax.jit(sharding.on_rows(step, batch_sharding), donate_argnums=0)


_norm = jax.named_scope("metrics")(trees.norm)


@jax.named_scope("optimizer")
def _where(ok: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, old)


@jax.named_scope("optimizer")
def _updated(
    state: TrainState, grads: PyTree, stats: PyTree, tx: optax.GradientTransformation, decay: float
) -> TrainState:
    """The state with the optimizer, statistics and EMA moved on; step and counts are as before."""
    updates, opt_state = tx.update(grads, _on_schedule(state), state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(
        state,
        params=params,
        batch_stats=stats,
        ema_params=_ema(state.ema_params, params, decay),
        ema_batch_stats=_ema(state.ema_batch_stats, stats, decay),
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


def _ema(ema: PyTree | None, new: PyTree, decay: float) -> PyTree | None:
    if ema is None:
        return None
    with jax.named_scope("ema"):
        return jax.tree.map(lambda e, n: e + (1.0 - decay) * (n - e), ema, new)


def _agreement(output: models.Output, teacher_logits: jax.Array) -> Metrics:
    choice = jnp.argmax(teacher_logits, axis=-1)
    agree = lambda logits: jnp.mean((jnp.argmax(logits, -1) == choice).astype(jnp.float32))
    terms = {"teacher_agreement": agree(output.logits)}
    if output.dist_logits is not None:
        terms["teacher_agreement_dist"] = agree(output.dist_logits)
    return terms


def _accumulate(grad_fn, params, stats, inputs, micro_batches: int):
    """Mean loss, metrics and gradients over equal micro-batches, one after another."""
    if micro_batches == 1:
        return grad_fn(params, stats, inputs)

    # Row i goes to micro-batch i mod n, so every one is spread over all devices as
    # the batch is, and no row moves between them.
    def split(x):
        return x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    def body(carry, micro_batch):
        total, stats = carry
        (loss, (stats, terms)), grads = grad_fn(params, stats, micro_batch)
        return (jax.tree.map(jnp.add, total, (loss, terms, grads)), stats), None

    stacked = jax.tree.map(split, inputs)
    first = jax.tree.map(lambda x: x[0], stacked)
    (loss, (_, terms)), grads = jax.eval_shape(grad_fn, params, stats, first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, terms, grads))
    (total, stats), _ = jax.lax.scan(body, (zeros, stats), stacked)
    loss, terms, grads = jax.tree.map(lambda x: x / micro_batches, total)
    return (loss, (stats, terms)), grads
