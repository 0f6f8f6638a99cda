"""`deit-jax train`: trains, distils or fine-tunes a model as its config says, or resumes a run."""

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Iterator

USAGE = """\
deit-jax train --config=RECIPE[:variant] --workdir=DIR [--config.section.key=value ...]

RECIPE is the name of a recipe that comes with the library, such as finetune, or a file, such as
./mine.py. In a checkout `python train.py` is the same command."""
JOINING = ("coordinator", "num_processes", "process_id")
JOINING += ("heartbeat_timeout_seconds", "join_timeout_seconds")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "train", help="train, distil or fine-tune a model", usage=USAGE, description=__doc__
    )
    _add_arguments(parser)
    # The file is read only when the processes are connected.
    parser.set_defaults(run=run, takes_overrides=True, reads_config=True, prefix="error")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the overrides as `section.key=value`, of the command's arguments."""
    from deit_jax import config

    parser = argparse.ArgumentParser(usage=USAGE, description=__doc__, allow_abbrev=False)
    _add_arguments(parser)
    flags, rest = parser.parse_known_args(argv)
    return flags, config.split_overrides(rest)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, help="recipe or file, with :variant if it has any")
    add("--workdir", required=True, help="folder of the run; created if missing")
    add("--force_resume", action="store_true", help="resume in a workdir whose config differs")
    add_joining(parser)


def add_joining(parser: argparse.ArgumentParser) -> None:
    """The flags by which processes find each other, for a command that has several."""
    add = parser.add_argument
    add("--coordinator", help="host:port of process 0, where no cluster manager provides it")
    add("--num_processes", type=int)
    add("--process_id", type=int)
    patience = "a run of several processes ends when one gives no sign of life for this long"
    add("--heartbeat_timeout_seconds", type=int, default=100, help=patience)
    add("--join_timeout_seconds", type=int, default=300, help="how long they wait for each other")


def run(args: argparse.Namespace) -> int:
    from deit_jax import config, storage

    overrides = config.split_overrides(args.overrides)
    with _preempted_before_training():
        storage.writable(args.workdir, "--workdir")
        # Imported here: jax takes seconds, and a signal must be answered during them.
        from deit_jax import distributed

        distributed.keep_freed_arrays()
        with distributed.join(**{name: getattr(args, name) for name in JOINING}) as processes:
            # After the processes are connected: these imports initialize the devices.
            from deit_jax.train import loop, schema

            resolved = schema.load(args.config, overrides)
            options = {"workdir": args.workdir, "force_resume": args.force_resume}
            loop.train(resolved, processes=processes, **options)
    return 0


@contextlib.contextmanager
def _preempted_before_training() -> Iterator[None]:
    """SIGTERM ends the process as one to be rerun, until the loop has something to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_TEMPFAIL))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
