"""scripts/sky.yaml: what SkyPilot accepts, and what its commands run, with stand-ins."""

import json
import subprocess
import sys

import jsonschema
import pytest
import yaml
from launch.world import ROOT

import train

TASK = yaml.safe_load((ROOT / "scripts/sky.yaml").read_text())
SCHEMA = json.loads((ROOT / "tests/vectors/launch/sky_schema.json").read_text())["schema"]


def test_skypilot_accepts_it_and_recovers_from_75_alone():
    jsonschema.Draft202012Validator(SCHEMA).validate(TASK)
    recovery = TASK["resources"]["job_recovery"]
    # SkyPilot takes any key here: those of other spelling would do nothing.
    known = SCHEMA["properties"]["resources"]["properties"]["job_recovery"]["anyOf"][1]
    assert set(recovery) <= set(known["properties"])
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**TASK, "file_mount": {}}, SCHEMA)


def run(folder, status: int = 0, **environment: str):
    """(exit status, arguments of train.py) of the task's `run` on one machine."""
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    recorder = "import json, sys; print(json.dumps(sys.argv[1:]))"
    python.write_text(f'#!/bin/bash\n{sys.executable} -S -c "{recorder}" "$@"\nexit {status}\n')
    python.chmod(0o755)
    envs = {**TASK["envs"], "SKYPILOT_NUM_NODES": "1", **environment}
    ran = subprocess.run(
        ["bash", "-c", TASK["run"]],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **envs},
        capture_output=True,
        text=True,
    )
    script, *arguments = json.loads(ran.stdout)
    assert script == "train.py"
    return ran.returncode, arguments


@pytest.mark.parametrize("status", [0, 1, 75])
def test_the_status_is_that_of_training(tmp_path, status):
    returned, arguments = run(tmp_path, status, ARGUMENTS="--config.seed=1 --config.optim.beta1=0")
    assert returned == status
    flags, overrides = train.parse(arguments)
    assert flags.config == "configs/deit.py:s" and flags.workdir == "gs://BUCKET/RUN"
    assert overrides == ["seed=1", "optim.beta1=0"] and flags.coordinator is None


def test_gpu_machines_are_told_of_each_other(tmp_path):
    nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}
    _, arguments = run(tmp_path, EXTRA="cuda", SKYPILOT_NODE_RANK="1", **nodes)
    flags, _ = train.parse(arguments)
    assert (flags.coordinator, flags.num_processes, flags.process_id) == ("10.0.0.7:8482", 2, 1)
