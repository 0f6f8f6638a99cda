"""Freed memory is kept: steps on a CPU do not ask the system for their arrays anew."""

import os
import platform
import subprocess
import sys

import pytest

from deit_jax.distributed import host_memory

CODE = """
import resource, sys
from deit_jax import distributed
if sys.argv[1] == "kept":
    distributed.keep_freed_arrays()
import jax
import jax.numpy as jnp

step = jax.jit(lambda x: jnp.cumsum(jnp.outer(x, jnp.arange(64.0)), 0).sum())
x = jnp.arange(2.0e5)
for _ in range(20):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_arrays_of_a_step_are_those_of_the_step_before():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}

    def new_pages(how):
        command = [sys.executable, "-c", CODE, how]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        return int(done.stdout)

    # 51 MB, 12,500 pages, for each of the two arrays of a step; the first steps find their places.
    assert new_pages("kept") < 50_000
    assert new_pages("returned") > 150_000


@pytest.mark.parametrize(
    "platforms, expected", [("cpu", True), ("cuda", False), ("cpu,tpu", False)]
)
def test_cpu_only_follows_the_platforms_that_jax_may_use(platforms, expected, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert host_memory.cpu_only() is expected


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu"])
def test_with_a_plugin_for_an_accelerator_nothing_is_set(plugin, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(host_memory.importlib.metadata, "entry_points", lambda **_: ())
    find = lambda name: object() if name == plugin else None
    monkeypatch.setattr(host_memory.importlib.util, "find_spec", find)
    set_options = []
    monkeypatch.setattr(host_memory, "_mallopt", lambda *option: set_options.append(option))
    host_memory.keep_freed_arrays()
    assert not set_options and not host_memory.cpu_only()
