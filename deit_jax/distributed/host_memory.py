"""What glibc does with freed memory, which decides a quarter of the time of training on a CPU.

By default it returns every large block to the system at once and asks for it again, which then
clears it page by page.
"""

import ctypes
import functools
import importlib.metadata
import importlib.util
import os

# Of mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_NEVER = -1


def keep_freed_arrays() -> None:
    """Where computing is done on the CPU alone, the arrays of a step reuse those of the last one.

    The process keeps the memory of its largest step until it ends. Must come before jax
    initializes its devices: threads that have an arena of their own map large blocks anew each
    time.
    """
    if cpu_only():
        _mallopt(_ARENA_MAX, 1)
        _mallopt(_MMAP_MAX, 0)
        _mallopt(_TRIM_THRESHOLD, _NEVER)


@functools.cache
def keep_freed_images() -> None:
    """The memory of decoded images is kept for the next ones, up to 64 MiB an arena.

    Otherwise reading a record and handing it to TensorFlow takes three times as long, most of
    it while the interpreter's lock is held.
    """
    _mallopt(_MMAP_THRESHOLD, 4 * 2**20)
    _mallopt(_TRIM_THRESHOLD, _NEVER if cpu_only() else 64 * 2**20)


def cpu_only() -> bool:
    """Whether jax finds no accelerator: it has no plugin for one, or must not use it."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    found = importlib.metadata.entry_points(group="jax_plugins")
    return not (found or any(map(importlib.util.find_spec, ("jax_plugins", "libtpu"))))


def _mallopt(option: int, value: int) -> None:
    # Other C libraries have none, or do as they please.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(option, value)
