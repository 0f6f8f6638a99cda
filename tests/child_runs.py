"""Small runs in child processes that can be killed; not a test itself.

Children are forked from a server that has imported everything but touched no device: a
run then starts in a second instead of five.
"""

import atexit
import contextlib
import multiprocessing
import os
import pathlib
import socket
import sys
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent

CONFIG = "configs/quickstart.py:plain"
TINY = (
    "model.depth=1",
    "model.embed_dim=32",
    "train.batch_size=32",
    "schedule.warmup_epochs=0.1",
    "log.trackers=",
    "log.figures=curves",
)

# A run with a checkpoint every other step, for tests that end it at any moment.
STEPS = 24
OVERRIDES = (
    f"train.total_steps={STEPS}",
    "train.checkpoint_every_steps=2",
    "train.eval_every_steps=12",
    "train.log_every_steps=4",
)

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "deit_jax.train.loop",
        "gcsfs.core",
        "deit_jax.train.schema",
        "sklearn.datasets",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ]
)


def start(
    workdir: str | os.PathLike,
    *overrides: str,
    devices: int = 1,
    batches: int = 0,
    environment: Mapping[str, str] | None = None,
    log: int = 0,
    **distributed,
):
    """A process that trains the quickstart's student as train.py does.

    `batches`: afterwards also writes digests of the first so many global batches, as they
    come from the host and augmented, to `<workdir>/batches.json`.
    `environment`: variables that are set. `distributed`: `coordinator`, `num_processes`,
    `process_id`. What it prints goes to `log_file`, number `log`.
    """
    arguments = (str(workdir), [*TINY, *overrides], devices, batches, distributed)
    process = _SERVER.Process(target=_train, args=(*arguments, dict(environment or {}), log))
    process.start()
    return process


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_two(
    workdir: str | os.PathLike,
    *overrides: str,
    devices: int,
    batches: int = 0,
    one: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
):
    """The same on two processes with `devices` fake devices each; `one`: of process 1 alone."""
    address = f"127.0.0.1:{free_port()}"
    return [
        start(
            workdir,
            *overrides,
            *(one if process_id else ()),
            log=process_id,
            devices=devices,
            batches=batches,
            environment=environment,
            coordinator=address,
            num_processes=2,
            process_id=process_id,
        )
        for process_id in range(2)
    ]


def finish(workdir: pathlib.Path, *overrides: str) -> pathlib.Path:
    """`workdir` of a run that has ended without an error."""
    run = start(workdir, *overrides)
    run.join()
    assert run.exitcode == 0, log_file(workdir).read_text()
    return workdir


def log_file(workdir: str | os.PathLike, process_id: int = 0) -> pathlib.Path:
    """Beside the workdir; of a run in a bucket in the folder $BUCKET_LOGS."""
    path = pathlib.Path(workdir)
    if "://" in str(workdir):
        path = pathlib.Path(os.environ["BUCKET_LOGS"], str(workdir).replace("/", "-"))
    return path.with_name(f"{path.name}-{process_id}.log")


def _train(
    workdir: str,
    overrides: list[str],
    devices: int,
    batches: int,
    distributed: dict,
    environment: dict[str, str],
    log_number: int,
) -> None:
    os.environ.update(environment)
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["PJRT_NPROC"] = str(2 * devices)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import jax

    import train

    # Bits must be equal, not fast: compiling is most of so small a run.
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    flags = [f"--{name}={value}" for name, value in distributed.items()]
    with open(log_file(workdir, log_number), "a") as log:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            status = train.main(
                [
                    f"--config={CONFIG}",
                    f"--workdir={workdir}",
                    *flags,
                    *(f"--config.{text}" for text in overrides),
                ]
            )
            if batches:
                _write_batches(pathlib.Path(workdir), overrides, batches)
            log.flush()
    # A forked child runs no exit handlers, and jax.distributed parts in one.
    atexit._run_exitfuncs()
    os._exit(status)


def _write_batches(workdir: pathlib.Path, overrides: list[str], count: int) -> None:
    import itertools
    import json

    import jax

    from deit_jax import rng
    from deit_jax.checkpoint.digest import digest_tree
    from deit_jax.distributed import sharding
    from deit_jax.train import experiment as experiment_lib
    from deit_jax.train import schema

    resolved = schema.load(CONFIG, overrides)
    experiment = experiment_lib.build(resolved)
    augment_fn = jax.jit(experiment.augment_fn)
    host = experiment.train_batches()
    digests = []
    for step, batch in enumerate(itertools.islice(host, count)):
        placed = sharding.to_global(experiment.batch_sharding, batch)
        key = rng.step_key(rng.base_key(resolved.seed), rng.Purpose.AUGMENT, step)
        digests.append(digest_tree({"host": placed, "augmented": augment_fn(key, placed)}))
    if jax.process_index() == 0:
        content = {
            "devices": jax.device_count(),
            "processes": jax.process_count(),
            "batches": digests,
        }
        (workdir / "batches.json").write_text(json.dumps(content))
