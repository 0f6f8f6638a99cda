"""Which checkpoints are kept: the latest, every n-th step, the best by a metric."""

import dataclasses
import math
from collections.abc import Mapping

from deit_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints to keep; others are deleted once a newer one is committed.

    Attributes:
      keep_latest: the newest n, at least 1; with one, a damaged one has no fall-back.
      keep_every_steps: also every step that this divides; None for none.
      keep_best: also the best n by `best_metric`.
      best_metric: name among the metrics given to `save`, for example "eval_ema/class/top1";
        None for no best (a run fills in the top-1 accuracy of its raw weights).
      higher_is_better: True for accuracies, False for losses.

    Raises:
      ConfigError: a number is out of its range.
    """

    keep_latest: int = 3
    keep_every_steps: int | None = None
    keep_best: int = 1
    best_metric: str | None = None
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        for name, value, least in (
            ("keep_latest", self.keep_latest, 1),
            ("keep_best", self.keep_best, 0),
            ("keep_every_steps", 1 if self.keep_every_steps is None else self.keep_every_steps, 1),
        ):
            if value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")

    def ranked(self, saved: Mapping[int, Mapping[str, float | None]]) -> list[int]:
        """Steps at which the metric was measured and is a number, best first, ties to the newer."""
        sign = 1 if self.higher_is_better else -1
        scores = {
            step: sign * value
            for step, metrics in saved.items()
            if (value := metrics.get(self.best_metric or "")) is not None and not math.isnan(value)
        }
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)

    def steps_to_keep(self, saved: Mapping[int, Mapping[str, float | None]]) -> set[int]:
        """The steps that are kept, given the metrics of every saved step.

        A NaN metric is worse than any number: such a checkpoint is never among the best.
        """
        keep = set(sorted(saved)[-self.keep_latest :])
        if self.keep_every_steps:
            keep.update(step for step in saved if step % self.keep_every_steps == 0)
        return keep | set(self.ranked(saved)[: self.keep_best])
