"""Writes tests/vectors/launch/sky_schema.json: what SkyPilot accepts as a task.

    pip install skypilot && python tests/reference/sky_schema.py

Kept are the parts that scripts/sky.yaml uses; any other key is refused there too.
"""

import json
import pathlib

from sky import __version__
from sky.utils import schemas

KEPT = ("name", "workdir", "num_nodes", "resources", "envs", "setup", "run")
RESOURCES = ("accelerators", "use_spot", "job_recovery")


def main() -> None:
    task, resources = schemas.get_task_schema(), schemas.get_resources_schema()
    task["properties"] = {key: task["properties"][key] for key in KEPT}
    known = {key: resources["properties"][key] for key in RESOURCES}
    # SkyPilot leaves this section to its own check.
    task["properties"]["resources"] = {
        "type": "object",
        "additionalProperties": False,
        "properties": known,
    }
    path = pathlib.Path(__file__).parent.parent / "vectors/launch/sky_schema.json"
    content = {"skypilot": __version__, "schema": task}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
