"""Writes tests/vectors/launch/jobset_schema.json from the custom resource definition of JobSet.

    python tests/reference/jobset_schema.py jobset-crd.yaml

The definition is that of `jobsets` in config/components/crd/bases of
github.com/kubernetes-sigs/jobset. Kept are the parts that scripts/jobset.yaml can use, without
descriptions; a key that the definition does not know is refused, as the API server does with
strict validation.
"""

import json
import pathlib
import sys

import yaml

DROPPED = {
    "affinity",
    "ephemeralContainers",
    "initContainers",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
}
KEPT = ("type", "enum", "required", "minimum", "maximum", "pattern", "format", "minLength")
# Volumes that are not used here.
VOLUMES = {"name", "emptyDir", "hostPath", "persistentVolumeClaim", "secret", "configMap", "csi"}


def pruned(node: dict, name: str = "") -> dict:
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: node[key] for key in KEPT if key in node and key != "format"}
    if "properties" in node:
        properties = {
            key: pruned(value, key)
            for key, value in node["properties"].items()
            if key not in DROPPED and (name != "volumes" or key in VOLUMES)
        }
        found["properties"] = properties
        found["additionalProperties"] = False
    elif isinstance(node.get("additionalProperties"), dict):
        found["additionalProperties"] = pruned(node["additionalProperties"])
    if "items" in node:
        found["items"] = pruned(node["items"], name)
    return found


def main(path: str) -> None:
    definition = yaml.safe_load(pathlib.Path(path).read_text())
    (version,) = definition["spec"]["versions"]
    schema = pruned(version["schema"]["openAPIV3Schema"])
    del schema["properties"]["status"]
    # The definition leaves the metadata of the object itself to the API server.
    schema["properties"]["metadata"] = {"type": "object"}
    target = pathlib.Path(__file__).parent.parent / "vectors/launch/jobset_schema.json"
    target.write_text(json.dumps(schema, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
