"""Optimizers with the semantics of the published runs: AdamW, LAMB as in apex, SGD as in torch.

A new optimizer is a function and a line in `OPTIMIZERS`. The function takes the `Rules` of
the parameters and returns the direction of the update, with weight decay and before the learning
rate and its layer-wise scales; its keyword-only parameters are options of the `optim`
section while it is chosen:

    def lion(rules: Rules, *, beta1: float = 0.9, beta2: float = 0.99) -> Direction:
        return optax.chain(optax.scale_by_lion(beta1, beta2), decay_weights(rules))
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from deit_jax import builders, trees
from deit_jax.errors import ConfigError
from deit_jax.models import Model
from deit_jax.optim.param_groups import Rules, make_rules

PyTree = Any
# A transformation of gradients to what the parameters move along, decay included.
Direction = optax.GradientTransformation


def adamw(
    rules: Rules, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> Direction:
    """Adam with decoupled weight decay (AdamW)."""
    return optax.chain(_adam(beta1, beta2, eps), decay_weights(rules))


def lamb(
    rules: Rules,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    lamb_clip_norm: float | None = 1.0,
) -> Direction:
    """LAMB as in apex's FusedLAMB, with use_nvlamb=False.

    Gradients clipped to the norm `lamb_clip_norm` (None for off), Adam's direction plus decay,
    and the updates of decayed tensors scaled by |parameter| / |update|. The published runs set
    eps to 1e-8.
    """
    return optax.chain(
        clip("lamb_clip_norm", lamb_clip_norm),
        _adam(beta1, beta2, eps),
        decay_weights(rules),
        scale_by_trust_ratio(rules),
    )


def sgd(rules: Rules, *, momentum: float = 0.9, nesterov: bool = True) -> Direction:
    """SGD with momentum as in torch, weight decay added to the gradient.

    The official `--opt sgd` is Nesterov's form.
    """
    _check_unit("momentum", momentum)
    return optax.chain(decay_weights(rules), optax.trace(decay=momentum, nesterov=nesterov))


OPTIMIZERS = {"adamw": adamw, "lamb": lamb, "sgd": sgd}


@builders.chooses(name=OPTIMIZERS)
def make_optimizer(
    params: PyTree,
    schedule: optax.Schedule,
    model: Model | None = None,
    *,
    name: str = "adamw",
    weight_decay: float = 0.05,
    decay_dist_token: bool = True,
    decay_all: bool = False,
    layer_decay: float | None = None,
    trainable: str = "all",
    clip_norm: float | None = None,
    **options: Any,
) -> optax.GradientTransformation:
    """The gradient transformation of a recipe; apply with `optax.apply_updates`.

    Decayed are kernels and, by switch, the distillation token; never biases, norm scales,
    LayerScale, class token or position embedding: `decay_groups` gives the table.

    Args:
      params: parameters, arrays or `jax.ShapeDtypeStruct`; only names and shapes are used.
      schedule: learning rate by step. The optimizer counts its own updates from 0.
      model: numbers the layers for `layer_decay`, which needs it, and lists parameters of its
        own without weight decay.
      name: a name in `OPTIMIZERS`.
      weight_decay: coefficient; 0 for none.
      decay_dist_token: True decays `dist_token`, as the published runs did; timm does not.
      decay_all: True decays every parameter, as torch does without groups and RegNet's authors
        did; LAMB then adapts every tensor.
      layer_decay: rate of layer l times layer_decay^(last - l), with timm's numbers, see
        `Model.layer_of`: embeddings 0, blocks from 1, final norm with the last block, heads
        last.
      trainable: 'all', 'attn_only' (attention, heads, position embedding), 'heads', or a
        regular expression searched in names such as 'blocks_0/attn/qkv/kernel'. The rest
        is frozen: not decayed, no state, left out of gradient norms.
      clip_norm: clip gradients to this global norm first; None for off, as published.
      options: those of the optimizer that `name` chose.

    Raises:
      ConfigError: an unknown name, a parameter without a decay rule, a `trainable` that
        matches nothing, layer decay without numbered layers, or a number out of range.
    """
    rules = make_rules(
        params,
        model,
        weight_decay=weight_decay,
        decay_dist_token=decay_dist_token,
        decay_all=decay_all,
        layer_decay=layer_decay,
        trainable=trainable,
    )
    direction = builders.choose(OPTIMIZERS, name, "optimizer")(rules, **options)
    rate = [_scale_by_layer(rules), optax.scale_by_learning_rate(schedule)]
    return _train_only(rules, optax.chain(clip("clip_norm", clip_norm), direction, *rate), params)


def decay_weights(rules: Rules) -> optax.GradientTransformation:
    """Adds each decayed parameter, times its coefficient, to its update."""

    def decay(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        weight = rules[path].decay
        return update + weight * param if weight else update

    return optax.stateless(lambda updates, params: trees.map_with_name(decay, updates, params))


def scale_by_trust_ratio(rules: Rules) -> optax.GradientTransformation:
    """Scales the updates of decayed tensors by |parameter| / |update|, 1 if either is 0.

    `optax.lamb` adapts every tensor.
    """

    def scale(path: str, update: jax.Array, param: jax.Array) -> jax.Array:
        if not rules[path].decay:
            return update
        param_norm = optax.tree.norm(param)
        update_norm = optax.tree.norm(update)
        usable = (param_norm > 0) & (update_norm > 0)
        ratio = jnp.where(usable, param_norm / jnp.where(usable, update_norm, 1.0), 1.0)
        return update * ratio

    return optax.stateless(lambda updates, params: trees.map_with_name(scale, updates, params))


def clip(option: str, norm: float | None) -> optax.GradientTransformation:
    """Clips gradients to a global norm, the value of the named option; None for off."""
    if norm is None:
        return optax.identity()
    if not norm > 0:
        raise ConfigError(f"{option} must be above 0 or None, not {norm}")
    return optax.clip_by_global_norm(norm)


def _adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    _check_unit("beta1", beta1)
    _check_unit("beta2", beta2)
    _check_unit("eps", eps)
    return optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps)


def _check_unit(option: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{option} must be at least 0 and below 1, not {value}")


def _scale_by_layer(rules: Rules) -> optax.GradientTransformation:
    if all(rule.lr_scale in (0.0, 1.0) for rule in rules.values()):
        return optax.identity()

    def scale(path: str, update: jax.Array) -> jax.Array:
        return update * rules[path].lr_scale

    return optax.stateless(lambda updates, _: trees.map_with_name(scale, updates))


def _train_only(rules: Rules, tx: optax.GradientTransformation, params: PyTree):
    if not any(rule.frozen for rule in rules.values()):
        return tx
    label = lambda path, _: "frozen" if rules[path].frozen else "trained"
    labels = trees.map_with_name(label, params)
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
