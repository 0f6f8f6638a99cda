"""Test environment: eight fake CPU devices, strict numerics, the shared photos when present."""

import gc
import importlib.metadata
import os
import pathlib
import time

JAXLIB = tuple(int(n) for n in importlib.metadata.version("jaxlib").split(".")[:2])

# Before jax is imported. Twice the device count of worker threads: with fewer,
# collectives on virtual devices can starve each other and hang; the time-outs
# turn a hang into a failure. A flag that jaxlib does not know would end the process.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PJRT_NPROC"] = "16"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # Compiling is most of the time of these tests. Where XLA still has its older
        # emitters, they take half of it.
        "--xla_cpu_use_fusion_emitters=false" if JAXLIB < (0, 11) else "",
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60" if JAXLIB >= (0, 8) else "",
        "--xla_cpu_collective_call_terminate_timeout_seconds=180" if JAXLIB >= (0, 8) else "",
    ]
)

import jax
import pytest

# Programs that were traced stay in memory: a full collection looks at millions of objects.
gc.set_threshold(100_000, 20, 100)

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile much and compute little.
jax.config.update("jax_disable_most_optimizations", True)

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items):
    """Whole runs first: what a worker takes over from another at the end is then short."""
    whole_runs = (ROOT / "tests" / "runs", ROOT / "tests" / "checkpoint")
    items.sort(key=lambda item: not any(item.path.is_relative_to(folder) for folder in whole_runs))


@pytest.fixture(scope="session")
def vectors() -> pathlib.Path:
    """Folder of stored reference vectors."""
    return ROOT / "tests" / "vectors"


@pytest.fixture(scope="session")
def tfds_dir() -> pathlib.Path:
    """Prepared data sets with real photos (imagenet2012 subset, cifar10)."""
    path = pathlib.Path(os.environ.get("DEIT_JAX_TFDS", ROOT.parent / "shared" / "tfds"))
    if not (path / "imagenet2012").is_dir():
        pytest.skip(f"no prepared imagenet2012 in {path}; set DEIT_JAX_TFDS to a tfds data_dir")
    return path


@pytest.fixture
def optimized():
    """For tests of what the compiler may change: programs are compiled as users' are."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory) -> str:
    """An override that lets runs of one session, on all its workers, share compiled programs."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return f"compilation_cache={shared / 'compiled'}"


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory, compilation_cache) -> pathlib.Path:
    """Workdir of a teacher of the ten digits, trained once for all workers."""
    import tiny_runs

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    workdir, ready = shared / "teacher", shared / "teacher-ready"
    try:
        (shared / "teacher-begun").touch(exist_ok=False)
    except FileExistsError:
        deadline = time.monotonic() + 300
        while not ready.exists():
            assert time.monotonic() < deadline, "the teacher that another worker trains"
            time.sleep(0.2)
        return workdir
    with pytest.MonkeyPatch.context() as patch:
        tiny_runs.on_one_device(patch)
        tiny_runs.train(tiny_runs.tiny("quickstart.py:teacher", compilation_cache), workdir)
    ready.touch()
    return workdir


@pytest.fixture(scope="session")
def gcs():
    """A server of buckets, which this process asks instead of Google."""
    pytest.importorskip("gcsfs", reason="needs gcsfs: pip install 'deit_jax[gcs]'")
    import fake_gcs

    with fake_gcs.Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(gcs) -> str:
    """Name of an empty bucket."""
    name = f"bucket-{len(gcs.buckets)}"
    gcs.buckets[name] = {}
    return name
