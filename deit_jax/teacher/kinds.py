"""What is kept of the teacher's logits for an image: its first choice, or the largest logits.

A new kind is a class with these attributes and methods and a line in `KINDS`.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax.errors import ConfigError

# Arrays [B, ...] by the name of their field.
Rows = dict[str, jax.Array]
MOST_CLASSES = 2**16  # that uint16 can number


@dataclasses.dataclass(frozen=True)
class Hard:
    """The teacher's first choice, which is all that hard distillation uses."""

    num_classes: int
    has_logits: ClassVar[bool] = False

    @property
    def row(self) -> np.dtype:
        """What is stored for an image."""
        return np.dtype([("choice", "<u2")])

    @property
    def description(self) -> str:
        """In the words of `deit-jax explain`."""
        return f"hard labels ({self.row.itemsize} bytes per image)"

    def encode(self, logits: jax.Array) -> Rows:
        """The stored fields of logits f32 [B, K]."""
        return {"choice": jnp.argmax(logits, axis=-1).astype(jnp.uint16)}

    def decode(self, rows: Rows) -> jax.Array:
        """Logits f32 [B, K] whose largest is the choice."""
        return jax.nn.one_hot(rows["choice"], self.num_classes, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Soft:
    """The k largest logits, and the mass of the others, which `decode` gives them in equal parts.

    With k = `num_classes` these are the logits themselves. At temperature 1 the probabilities of
    the k classes are exact for any k. float32, because float16 would change a logit of 8 by up to
    0.004, and 1,000 classes in float16 are more than the 100 largest in float32.
    """

    num_classes: int
    k: int
    has_logits: ClassVar[bool] = True

    @property
    def row(self) -> np.dtype:
        """What is stored for an image."""
        logit = ("logit", "<f4", (self.k,))
        if self.k == self.num_classes:
            return np.dtype([logit])
        return np.dtype([logit, ("rest", "<f4"), ("index", "<u2", (self.k,))])

    @property
    def description(self) -> str:
        """In the words of `deit-jax explain`."""
        which = f"{self.k:,} of {self.num_classes:,} logits and the mass of the rest"
        if self.k == self.num_classes:
            which = f"all {self.k:,} logits"
        return f"{which} ({self.row.itemsize:,} bytes per image)"

    def encode(self, logits: jax.Array) -> Rows:
        """The stored fields of logits f32 [B, K]; `rest` is the log of the sum of exponentials."""
        if self.k == self.num_classes:
            return {"logit": logits}
        largest, index = jax.lax.top_k(logits, self.k)
        row = jnp.arange(len(logits))[:, None]
        others = logits.at[row, index].set(-jnp.inf)
        rest = jax.nn.logsumexp(others, axis=-1)
        return {"logit": largest, "rest": rest, "index": index.astype(jnp.uint16)}

    def decode(self, rows: Rows) -> jax.Array:
        """Logits f32 [B, K]."""
        if self.k == self.num_classes:
            return rows["logit"]
        each = rows["rest"] - math.log(self.num_classes - self.k)
        logits = jnp.broadcast_to(each[:, None], (len(each), self.num_classes))
        row = jnp.arange(len(each))[:, None]
        return logits.at[row, rows["index"].astype(jnp.int32)].set(rows["logit"])


Kind = Hard | Soft
KINDS = {"hard": Hard, "soft": Soft}


def make_kind(num_classes: int, choice_only: bool, *, label_k: int | None = None) -> Kind:
    """What a run or `deit-jax labels` records.

    Args:
      num_classes: K.
      choice_only: the distillation loss uses the teacher's first choice alone.
      label_k: logits per image, the largest; None: the first choice if that is all that the loss
        uses, else all K.

    Raises:
      ConfigError: more logits than classes, or more classes than uint16 can number.
    """
    if num_classes > MOST_CLASSES:
        raise ConfigError(
            f"record: labels are uint16, for at most {MOST_CLASSES:,} classes, not {num_classes:,}"
        )
    if label_k is not None and not 1 <= label_k <= num_classes:
        raise ConfigError(
            f"label_k must be 1 to {num_classes}, the number of classes, not {label_k}"
        )
    if label_k is None and choice_only:
        return Hard(num_classes)
    return Soft(num_classes, label_k or num_classes)


def to_json(kind: Kind) -> dict[str, Any]:
    """The kind as JSON values, for `from_json`."""
    (name,) = (name for name, entry in KINDS.items() if isinstance(kind, entry))
    return {"kind": name} | dataclasses.asdict(kind)


def from_json(content: dict[str, Any]) -> Kind:
    """The kind of `to_json`. Raises KeyError or TypeError for anything else."""
    return KINDS[content["kind"]](**{k: v for k, v in content.items() if k != "kind"})
