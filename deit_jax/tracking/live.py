"""Curves that grow below the cell of a notebook while it trains."""

import time
from collections.abc import Mapping
from typing import Any

from deit_jax import figures, storage
from deit_jax.errors import ConfigError
from deit_jax.tracking import display, series

# Drawing takes at most one part in so many of the time, and no more than once in a second.
_SHARE, _LEAST_SECONDS = 20.0, 1.0


class NotebookTracker:
    """The curves of the run so far, drawn anew in their place."""

    def __init__(
        self, workdir: storage.Path, resume_step: int = 0, config: Mapping[str, Any] | None = None
    ) -> None:
        if not display.in_notebook():
            raise ConfigError("config.log.trackers=notebook draws in a notebook, and this is none")
        self._name = workdir.name
        self._series = series.read_series(workdir) if resume_step else {}
        self._shown: Any = None
        self._next = time.perf_counter()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            steps, known = self._series.setdefault(name, ([], []))
            steps.append(step)
            known.append(value)
        if time.perf_counter() >= self._next:
            self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        from IPython import display as ipython  # pyright: ignore[reportMissingImports]

        begun = time.perf_counter()
        figure = figures.curves({self._name: self._series})
        if self._shown is None:
            self._shown = ipython.display(figure, display_id=True)
        else:
            self._shown.update(figure)
        now = time.perf_counter()
        self._next = now + max(_LEAST_SECONDS, _SHARE * (now - begun))
