"""scripts/slurm.sbatch, with stand-ins for srun and scontrol."""

import json
import re
import subprocess
import sys

import pytest
from launch.world import ROOT

SCRIPT = ROOT / "scripts/slurm.sbatch"
ARGUMENTS = ["--config=configs/deit.py:b", "--workdir=gs://bucket/b", "--config.x=a 'b' $c"]


def submit(folder, *arguments: str, status: int = 0, **environment: str):
    """(exit status, calls of srun and scontrol) of the script as sbatch runs it."""
    calls = folder / "calls"
    recorder = "import json, sys; print(json.dumps(sys.argv[1:]))"
    for name, code in {"srun": status, "scontrol": 0}.items():
        tool = folder / name
        tool.write_text(
            f'#!/bin/bash\n{sys.executable} -S -c "{recorder}" {name} "$@" >>{calls}\nexit {code}\n'
        )
        tool.chmod(0o755)
    run = subprocess.run(
        ["bash", SCRIPT, *arguments],
        cwd=ROOT,
        env={"PATH": f"{folder}:/usr/bin:/bin", "SLURM_JOB_ID": "17", **environment},
    )
    return run.returncode, [json.loads(line) for line in calls.read_text().splitlines()]


@pytest.mark.parametrize("status", [0, 1, 2, 75, 130, 137])
def test_75_alone_requeues(tmp_path, status):
    returned, (srun, *rest) = submit(tmp_path, *ARGUMENTS, status=status)
    assert returned == status
    assert srun[0] == "srun" and srun[-4:] == ["train.py", *ARGUMENTS]
    assert rest == ([["scontrol", "requeue", "17"]] if status == 75 else [])


def test_a_container_changes_only_the_options_of_srun(tmp_path):
    _, ((_, *plain),) = submit(tmp_path, *ARGUMENTS, PYTHON="python")
    (tmp_path / "calls").unlink()
    _, ((_, *inside),) = submit(
        tmp_path, *ARGUMENTS, PYTHON="python", CONTAINER="image#tag", MOUNTS="/data:/data"
    )
    command = ["python", "train.py", *ARGUMENTS]
    assert plain[-len(command) :] == inside[-len(command) :] == command
    added = inside[: -len(command)]
    assert added[: len(plain) - len(command)] == plain[: -len(command)]
    assert added[len(plain) - len(command) :] == [
        "--container-image=image#tag",
        f"--container-workdir={ROOT}",
        f"--container-mounts={ROOT}:{ROOT},/data:/data",
    ]


def test_slurm_is_told_to_signal_and_to_requeue():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", SCRIPT.read_text(), re.M))
    assert options["signal"] == "TERM@300" and "requeue" in options
    # One log over all starts, and one task per node with all of its memory.
    assert options["open-mode"] == "append" and options["ntasks-per-node"] == "1"
    assert options["mem"] == "0"
