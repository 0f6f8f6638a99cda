"""Optimizers with the semantics of the published runs: AdamW, LAMB as in apex, SGD as in torch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deit_jax import errors, trees
from deit_jax.optim.param_groups import Masks, decay_groups, format_groups
from deit_jax.optim.schedules import Schedule

__all__ = ["NAMES", "decay_groups", "format_groups", "make_optimizer"]

PyTree = Any

NAMES = ("adamw", "lamb", "sgd")


def make_optimizer(
    *,
    params: PyTree,
    schedule: Schedule,
    name: str = "adamw",
    weight_decay: float = 0.05,
    decay_dist_token: bool = True,
    layer_decay: float | None = None,
    trainable: str = "all",
    clip_norm: float | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.9,
    nesterov: bool = True,
    lamb_clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """The gradient transformation of a recipe; apply with `optax.apply_updates`.

    Decayed are kernels and, by switch, the distillation token; never biases, norm scales,
    LayerScale, class token or position embedding: `decay_groups` gives the table.

    Args:
      params: parameters, arrays or `jax.ShapeDtypeStruct`; only names and shapes are used.
      schedule: learning rate by step. The optimizer counts its own updates from 0.
      name: 'adamw' (decay times the learning rate, apart from the gradient); 'lamb' (apex
        FusedLAMB: gradients clipped, Adam direction plus decay, decayed tensors scaled by
        |p| / |update|); 'sgd' (torch: decay added to the gradient before the momentum).
      decay_dist_token: True decays `dist_token`, as the published runs did; timm does not.
      layer_decay: rate of layer l times layer_decay^(depth + 1 - l), with timm's numbers:
        embeddings 0, blocks from 1, final norm with the last block, heads depth + 1.
      trainable: 'all', 'attn_only' (attention, heads, position embedding), 'heads', or a
        regular expression searched in names such as 'blocks_0/attn/qkv/kernel'. The rest
        is frozen: not decayed, no state, left out of gradient norms.
      clip_norm: clip gradients to this global norm first; None for off, as published.
      beta1, beta2, eps: of 'adamw' and 'lamb'. The published LAMB runs set eps to 1e-8.
      momentum, nesterov: of 'sgd'. The official `--opt sgd` is Nesterov's form.
      lamb_clip_norm: the clipping inside 'lamb', apex's default; None for off.

    Raises ConfigError for an unknown name, a parameter without a decay rule, a `trainable`
    that matches nothing, layer decay without numbered blocks, or a number out of range.
    """
    if name not in NAMES:
        raise errors.unknown("optimizer", name, NAMES)
    _check(weight_decay, layer_decay, clip_norm, lamb_clip_norm, beta1, beta2, momentum)
    masks = Masks.make(
        params,
        decay_dist_token=decay_dist_token,
        layer_decay=layer_decay,
        trainable=trainable,
    )
    decay = optax.add_decayed_weights(weight_decay, mask=_mask(masks.decayed))
    adam = scale_by_adam(beta1=beta1, beta2=beta2, eps=eps)
    parts = {
        "adamw": [adam, decay],
        "lamb": [_clip(lamb_clip_norm), adam, decay, scale_by_trust_ratio(masks, weight_decay)],
        "sgd": [decay, optax.trace(decay=momentum, nesterov=nesterov)],
    }[name]
    last = [_scale_by_layer(masks), optax.scale_by_learning_rate(schedule)]
    return _train_only(masks, optax.chain(_clip(clip_norm), *parts, *last), params)


def _train_only(masks: Masks, tx: optax.GradientTransformation, params: PyTree):
    if all(masks.trainable.values()):
        return tx
    labels = trees.map_with_name(
        lambda path, _: "trained" if masks.trainable[path] else "frozen", params
    )
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


def scale_by_adam(*, beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Adam's bias-corrected direction m / (sqrt(v) + eps).

    `optax.scale_by_adam` with exact corrections: it takes 1 - beta2 ** count in f32, where
    1 - .999 has a relative error of 1.3e-5, which then is in every update.
    """

    def init_fn(params: PyTree) -> optax.ScaleByAdamState:
        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros(), nu=zeros())

    def update_fn(grads: PyTree, state: optax.ScaleByAdamState, params: PyTree | None = None):
        del params
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda g, m: beta1 * m + (1 - beta1) * g, grads, state.mu)
        nu = jax.tree.map(lambda g, v: beta2 * v + (1 - beta2) * jnp.square(g), grads, state.nu)
        gain1, gain2 = _one_minus_power(beta1, count), _one_minus_power(beta2, count)
        updates = jax.tree.map(lambda m, v: m / gain1 / (jnp.sqrt(v / gain2) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init_fn, update_fn)


def _one_minus_power(beta: float, count: jax.Array) -> jax.Array:
    # Without the cancellation of 1 - beta ** count in f32.
    return -jnp.expm1(count.astype(jnp.float32) * math.log(beta)) if beta else jnp.float32(1.0)


def scale_by_trust_ratio(masks: Masks, weight_decay: float) -> optax.GradientTransformation:
    """Scales the updates of decayed tensors by |parameter| / |update|, 1 if either is 0.

    apex's FusedLAMB with use_nvlamb=False; `optax.lamb` adapts every tensor. Without a
    `weight_decay` no tensor is decayed, and none is scaled.
    """
    if not weight_decay:
        return optax.identity()

    def scale(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if not masks.decayed[path]:
            return update
        param_norm = optax.tree.norm(param)
        update_norm = optax.tree.norm(update)
        usable = (param_norm > 0) & (update_norm > 0)
        ratio = jnp.where(usable, param_norm / jnp.where(usable, update_norm, 1.0), 1.0)
        return update * ratio

    def update_fn(updates: PyTree, params: PyTree) -> PyTree:
        return trees.map_with_name(scale, updates, params)

    return optax.stateless(update_fn)


def _clip(norm: float | None) -> optax.GradientTransformation:
    return optax.identity() if norm is None else optax.clip_by_global_norm(norm)


def _scale_by_layer(masks: Masks) -> optax.GradientTransformation:
    if set(masks.lr_scale.values()) == {1.0}:
        return optax.identity()

    def scale(path: str, update: jax.Array) -> jax.Array:
        return update * masks.lr_scale[path]

    return optax.stateless(lambda updates, _: trees.map_with_name(scale, updates))


def _mask(chosen: dict[str, bool]):
    # By name and not by tree: under partition the frozen leaves are absent.
    return lambda tree: trees.map_with_name(lambda path, _: chosen[path], tree)


def _check(weight_decay, layer_decay, clip_norm, lamb_clip_norm, beta1, beta2, momentum) -> None:
    if not weight_decay >= 0:
        raise errors.ConfigError(f"optim.weight_decay must be at least 0, not {weight_decay}")
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise errors.ConfigError(f"optim.layer_decay is in (0, 1] or None, not {layer_decay}")
    for key, value in (("clip_norm", clip_norm), ("lamb_clip_norm", lamb_clip_norm)):
        if value is not None and not value > 0:
            raise errors.ConfigError(f"optim.{key} is above 0 or None, not {value}")
    for key, value in (("beta1", beta1), ("beta2", beta2), ("momentum", momentum)):
        if not 0 <= value < 1:
            raise errors.ConfigError(f"optim.{key} is in [0, 1), not {value}")
