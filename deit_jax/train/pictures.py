"""The figures of a run, drawn at its end into its workdir."""

import contextlib
from collections.abc import Callable, Iterator

from deit_jax import figures, storage
from deit_jax.errors import ConfigError
from deit_jax.tracking import series


def draw(workdir: storage.Path, say: Callable[[str], None]) -> None:
    """Draws what was measured; what cannot be drawn is one line, and no reason to fail a run."""
    with _told(say, "curves"):
        drawn = figures.curves({workdir.name: series.read_series(workdir)})
        figures.save(drawn, workdir / "curves.png")


@contextlib.contextmanager
def _told(say: Callable[[str], None], name: str) -> Iterator[None]:
    try:
        yield
    except (ConfigError, OSError) as error:
        say(f"{name} not drawn: {error}")
