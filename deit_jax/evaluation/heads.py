"""The outputs of a classifier's heads: each alone, and the two of a distilled model together.

A new one is a function and a line in `HEADS`: it is then evaluated, logged, compared,
predicted with and known to `checkpoint.best_metric`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deit_jax.models import Output


class Head(NamedTuple):
    """One way to a class: from f32 logits [B, K] of both heads to log-probabilities [B, K]."""

    title: str
    log_probabilities: Callable[[jax.Array, jax.Array], jax.Array]


def _sum_of_softmaxes(logits: jax.Array, dist_logits: jax.Array) -> jax.Array:
    both = jnp.logaddexp(jax.nn.log_softmax(logits), jax.nn.log_softmax(dist_logits))
    return both - jnp.log(2.0)


HEADS = {
    "class": Head("class head", lambda logits, dist: jax.nn.log_softmax(logits)),
    "dist": Head("distillation head", lambda logits, dist: jax.nn.log_softmax(dist)),
    # What the official code evaluates.
    "mean": Head("mean of logits", lambda logits, dist: jax.nn.log_softmax((logits + dist) / 2)),
    # What section 4 of the paper describes; its first choice can differ from that of `mean`.
    "softmax_sum": Head("sum of softmaxes", _sum_of_softmaxes),
}
_SINGLE = "class"


def head_names(*, distilled: bool) -> tuple[str, ...]:
    """The names that apply to a model with or without a distillation head."""
    return tuple(HEADS) if distilled else (_SINGLE,)


def main_head(names: Iterable[str]) -> str:
    """The one that is reported where there is room for one, as in the paper."""
    return "mean" if "mean" in names else _SINGLE


def head_outputs(output: Output) -> dict[str, jax.Array]:
    """Log-probabilities f32 [B, K] by name."""
    logits, dist = output.logits.astype(jnp.float32), output.dist_logits
    names = head_names(distilled=dist is not None)
    dist = logits if dist is None else dist.astype(jnp.float32)
    return {name: HEADS[name].log_probabilities(logits, dist) for name in names}
