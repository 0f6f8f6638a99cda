"""The compilation cache, and the time from launch to the first step."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from deit_jax import storage

PyTree = Any

_COMPILED = "/jax/core/compile/backend_compile_duration"
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"

# Older versions of jax cannot unregister a listener: one pair passes its events on to these.
_RUNNING: set["StartClock"] = set()


@functools.cache
def _listen() -> None:
    """Registers the listeners of this process."""

    def count(event: str, **_: Any) -> None:
        for clock in tuple(_RUNNING):
            clock.programs += event == _REQUEST
            clock.cached += event == _HIT

    def time_(event: str, duration_secs: float, **_: Any) -> None:
        for clock in tuple(_RUNNING):
            if event == _COMPILED:
                clock.compile_seconds += duration_secs

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(time_)


def use_compilation_cache(folder: str, *, workdir: storage.Path) -> None:
    """Keeps compiled programs in `folder`, or in `<workdir>/compilation_cache` if empty."""
    folder = str(storage.path(folder) if folder else workdir / "compilation_cache")
    if jax.config.values["jax_compilation_cache_dir"] != folder:
        # A cache that is open stays open, whatever the option says.
        compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", folder)
    # Small programs too: together they cost seconds of every start.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


class StartClock:
    """Measures from when it is entered to the end of the first step.

    Attributes, jax's own counts (`jax.monitoring`) that include what other threads compile:
      compile_seconds: spent in the compiler, or on reading programs from the cache.
      programs: requested from the persistent compilation cache.
      cached: those that it had.
      time: when the clock was made, in seconds since 1970.
    """

    def __init__(self) -> None:
        self.compile_seconds, self.programs, self.cached = 0.0, 0, 0
        self._begun, self.time = time.perf_counter(), time.time()

    def __enter__(self) -> "StartClock":
        _listen()
        _RUNNING.add(self)
        return self

    def __exit__(self, *_exc: Any) -> None:
        _RUNNING.discard(self)

    def first_step(self, dispatch: Callable[[], PyTree]) -> dict[str, float]:
        """Calls `dispatch()`, which starts the first step, and waits for the arrays it returns.

        Returns `seconds` since the clock was entered; of the step itself `trace_seconds`
        (from Python to a program), `compile_seconds` and `run_seconds`; and of the whole
        start `programs` and `programs_cached`.
        """
        begun, before = time.perf_counter(), self.compile_seconds
        arrays = dispatch()
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
    """`first step finished 21.3 s after launch (trace 3.0 s, compile 12.0 s [cold, ...], ...)`."""
    programs, cached = int(times["programs"]), int(times["programs_cached"])
    kind = "warm" if cached == programs else "cold"
    cache = f"{kind}, {cached} of {programs} programs cached" if programs else "no cache"
    return (
        f"first step finished {times['seconds']:.1f} s after launch (trace "
        f"{times['trace_seconds']:.1f} s, compile {times['compile_seconds']:.1f} s [{cache}], "
        f"run {times['run_seconds']:.1f} s)"
    )
