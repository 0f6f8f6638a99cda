"""Metrics of the steps since the last line of the log, averaged over those that were finite."""

from collections.abc import Mapping


class Window:
    """Collects the scalars of steps until they are written.

    The means cover the steps of this start only: where a run goes on in the middle of an
    interval, its first line averages what it has done of it, and `averaged_steps` says
    how many steps that is. Skipped steps are in no mean.
    """

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._skipped = False

    def __bool__(self) -> bool:
        return self._skipped or self._steps > 0

    def add(self, scalars: Mapping[str, float]) -> None:
        """One finite step."""
        for key, value in scalars.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._steps += 1

    def skip(self) -> None:
        """One step whose update was left out."""
        self._skipped = True

    def take(self) -> dict[str, float]:
        """The means and `averaged_steps`; without means if every step was skipped. Empties it."""
        means = {key: total / self._steps for key, total in self._sums.items()}
        means["averaged_steps"] = float(self._steps)
        self.__init__()
        return means
