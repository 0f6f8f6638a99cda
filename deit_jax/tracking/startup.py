"""The compilation cache, and how long a run takes to its first step with and without it."""

import pathlib
import time
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

_COMPILED = "/jax/core/compile/backend_compile_duration"
_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"


def use_compilation_cache(folder: str, *, workdir: pathlib.Path) -> None:
    """Keeps compiled programs in `folder`, if empty in `<workdir>/compilation_cache`."""
    folder = folder or str(workdir / "compilation_cache")
    if jax.config.jax_compilation_cache_dir != folder:
        # A cache once opened stays open, whatever the option says.
        compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    # Small programs too: together they cost seconds of every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class StartClock:
    """Measures from when it is entered to the end of the first step.

    Programs and seconds are jax's own counts (`jax.monitoring`), so they hold what other
    threads compile as well.

    Attributes:
      compile_seconds: spent in the compiler, or reading its results from the cache.
      programs: that the persistent compilation cache was asked for.
      cached: of these, those that it had.
    """

    def __init__(self) -> None:
        self.compile_seconds, self.programs, self.cached = 0.0, 0, 0
        self._begun = time.perf_counter()

    def __enter__(self) -> "StartClock":
        jax.monitoring.register_event_listener(self._count)
        jax.monitoring.register_event_duration_secs_listener(self._time)
        return self

    def __exit__(self, *_exc: Any) -> None:
        jax.monitoring.unregister_event_listener(self._count)
        jax.monitoring.unregister_event_duration_listener(self._time)

    def _count(self, event: str, **_: Any) -> None:
        self.programs += event == _ASKED
        self.cached += event == _HIT

    def _time(self, event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILED:
            self.compile_seconds += seconds

    def first_step(self, take: Any) -> dict[str, float]:
        """Runs `take()`, which dispatches the first step and returns its arrays, and waits.

        Returns, in seconds: `seconds` since the clock was entered, and of the step itself
        `trace_seconds` (Python to a program), `compile_seconds` and `run_seconds`; then
        `programs` and `programs_cached`, of the whole start.
        """
        begun, before = time.perf_counter(), self.compile_seconds
        arrays = take()
        dispatched = time.perf_counter()
        jax.block_until_ready(arrays)
        done = time.perf_counter()
        compiling = self.compile_seconds - before
        return {
            "seconds": done - self._begun,
            "trace_seconds": max(0.0, dispatched - begun - compiling),
            "compile_seconds": compiling,
            "run_seconds": done - dispatched,
            "programs": float(self.programs),
            "programs_cached": float(self.cached),
        }


def describe(times: dict[str, float]) -> str:
    """One line: `first step done 21.3 s after the start (...)`, cold or warm."""
    programs, cached = int(times["programs"]), int(times["programs_cached"])
    if programs:
        kind = "warm" if cached == programs else "cold"
        cache = f"{kind}: {cached} of {programs} programs from the compilation cache"
    else:
        cache = "no compilation cache"
    return (
        f"compiled, first step done {times['seconds']:.1f} s after the start: traced in "
        f"{times['trace_seconds']:.1f} s, compiled in {times['compile_seconds']:.1f} s ({cache}), "
        f"ran in {times['run_seconds']:.1f} s"
    )
