"""Steps with a non-finite loss or gradient: skip them or stop the run, with nothing lost.

The training step leaves such an update out by itself and counts, in the state. When the
limit of this section is reached it halts: nothing in the state changes any more. The host
reads the metrics of a step two steps later, so this is what lets it find exactly the state
after the bad step, which is the state before it but for the step number and the counts.

To add an action: a function that returns the limit, and a line in `ACTIONS`.
"""

from collections.abc import Mapping
from typing import Any

from deit_jax import builders
from deit_jax.errors import ConfigError, RunStopped, check_at_most


class NonFiniteError(RunStopped):
    """Loss or gradient was not finite; the message names the step and what is left."""


def stop() -> int:
    """Stop the run at the first step with a non-finite loss or gradient."""
    return 1


def skip(*, max_in_a_row: int = 10) -> int:
    """Skip updates with a non-finite loss or gradient, and stop after too many in a row.

    A diverged run is non-finite at every step; a lone overflow here and there harms nothing,
    so the total is only logged. Learning rate and random draws follow the step, so a resumed
    run skips the same steps.
    """
    if max_in_a_row < 1:
        raise ConfigError(f"max_in_a_row must be at least 1, not {max_in_a_row}")
    check_at_most(2**31 - 1, max_in_a_row=max_in_a_row)
    return max_in_a_row


ACTIONS = {"stop": stop, "skip": skip}


@builders.chooses(action=ACTIONS)
def make_limit(*, action: str = "stop", **options: int) -> int:
    """The number of non-finite steps in a row that stops the run; fewer are skipped.

    Raises:
      ConfigError: an unknown action, or a number below 1.
    """
    return builders.choose(ACTIONS, action, "action")(**options)


def skip_message(
    step: int, metrics: Mapping[str, float], *, total: int, in_a_row: int, limit: int
) -> str:
    """The line for a skipped update."""
    return (
        f"skipped: {_describe(step, metrics)}; {total} so far, {in_a_row} in a row, at {limit} "
        "the run stops"
    )


def stop_message(
    step: int, metrics: Mapping[str, float], *, in_a_row: int, limit: int, dumped: Any
) -> str:
    """The sentences for the step that stops the run; `dumped` is the dump's folder, if any."""
    row = f", the last of {in_a_row} in a row" if in_a_row > 1 else ""
    replay = f" `deit-jax replay --dump={dumped}` names the gradients." if dumped else ""
    skip = "; config.nonfinite.action=skip skips single bad steps" if limit == 1 else ""
    return (
        f"{_describe(step, metrics)}{row}: the update was skipped and the run stops.{replay} A "
        f"lower config.schedule.base_lr, config.optim.clip_norm=1.0 or float32 may help{skip}."
    )


def _describe(step: int, metrics: Mapping[str, float]) -> str:
    return (
        f"loss or gradient is not finite at step {step:,} (loss {metrics['loss']}, gradient "
        f"norm {metrics['grad_norm']})"
    )
