"""What every model returns."""

from typing import NamedTuple

import jax


class Output(NamedTuple):
    """Logits of the heads, f32 [B, K].

    Attributes:
      logits: of the class token's head, or of the only head.
      dist_logits: of the distillation token's head; None where there is none.
    """

    logits: jax.Array
    dist_logits: jax.Array | None
