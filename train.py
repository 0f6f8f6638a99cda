"""Trains, distils or fine-tunes a model as its config says."""

import argparse
import os
import signal
import sys

from deit_jax import config, errors

USAGE = "python train.py --config=FILE[:variant] --workdir=DIR [--config.section.key=value ...]"
JOINING = ("coordinator", "num_processes", "process_id")
JOINING += ("heartbeat_timeout_seconds", "join_timeout_seconds")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the overrides as `section.key=value`."""
    parser = argparse.ArgumentParser(usage=USAGE, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--config", required=True, help="config file, with :variant if it has any")
    add("--workdir", required=True, help="folder of the run; created if missing")
    add("--force_resume", action="store_true", help="resume in a workdir whose config differs")
    add("--coordinator", help="host:port of process 0, where no cluster manager provides it")
    add("--num_processes", type=int)
    add("--process_id", type=int)
    patience = "a run of several processes ends when one gives no sign of life for this long"
    add("--heartbeat_timeout_seconds", type=int, default=100, help=patience)
    add("--join_timeout_seconds", type=int, default=300, help="how long they wait for each other")
    flags, rest = parser.parse_known_args(argv)
    return flags, config.split_overrides(rest)


def main(argv: list[str]) -> int:
    """Exit status: 0 done, 1 failed, 2 could not start, 75 or 130 saved and stopped by a signal."""
    try:
        flags, overrides = parse(argv)
        # Imported here: jax takes seconds, and a signal must be answered during them.
        from deit_jax import distributed

        with distributed.join(**{name: getattr(flags, name) for name in JOINING}) as processes:
            # After the processes are connected: these imports initialize the devices.
            from deit_jax.train import loop, schema

            resolved = schema.load(flags.config, overrides)
            options = {"workdir": flags.workdir, "force_resume": flags.force_resume}
            loop.train(resolved, processes=processes, **options)
    except errors.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except errors.RunStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    # Until the loop takes over there is nothing to save, and a preempted run is to be rerun.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(os.EX_TEMPFAIL))
    sys.exit(main(sys.argv[1:]))
