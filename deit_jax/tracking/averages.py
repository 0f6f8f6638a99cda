"""Means of the metrics of a log interval, over its finite steps."""

from collections.abc import Mapping


class MetricAverages:
    """Sums the metrics of finite steps until they are logged.

    Where a run is resumed in the middle of an interval, the first means cover the steps since
    then; `averaged_steps` is their number.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._skipped = False

    def __bool__(self) -> bool:
        return self._skipped or self._steps > 0

    def add(self, metrics: Mapping[str, float]) -> None:
        """One finite step."""
        for key, value in metrics.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._steps += 1

    def skip(self) -> None:
        """One step whose update was skipped."""
        self._skipped = True

    def take(self) -> dict[str, float]:
        """The means and `averaged_steps`, without means if every step was skipped; then resets."""
        means = {key: total / self._steps for key, total in self._sums.items()}
        means["averaged_steps"] = float(self._steps)
        self.__init__()
        return means
