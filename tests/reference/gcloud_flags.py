"""Writes tests/vectors/launch/gcloud_flags.json: which flags the real `gcloud` knows.

    python tests/reference/gcloud_flags.py /usr/lib/google-cloud-sdk

Reads the tree of commands that the Google Cloud CLI carries for completion, so that the
stand-in for `gcloud` in the tests refuses what the real one would refuse.
"""

import json
import pathlib
import runpy
import sys

COMMANDS = [
    "compute tpus tpu-vm create",
    "compute tpus tpu-vm delete",
    "compute tpus tpu-vm describe",
    "compute tpus tpu-vm ssh",
    "compute tpus tpu-vm scp",
    "compute tpus queued-resources create",
    "compute tpus queued-resources delete",
    "compute tpus queued-resources describe",
    "storage cp",
]
# The tree leaves it out because every command has a --version of its own.
HIDDEN = {"compute tpus tpu-vm create": ["--version"]}


def main(sdk: pathlib.Path) -> None:
    tree = runpy.run_path(str(sdk / "data/cli/gcloud_completions.py"))["STATIC_COMPLETION_CLI_TREE"]
    known = {}
    for command in COMMANDS:
        node = tree
        for word in command.split():
            node = node["commands"][word]
        known[command] = sorted([*node["flags"], *tree["flags"], *HIDDEN.get(command, [])])
    content = {"gcloud": (sdk / "VERSION").read_text().strip(), "flags": known}
    path = pathlib.Path(__file__).parent.parent / "vectors/launch/gcloud_flags.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
