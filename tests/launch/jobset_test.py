"""scripts/jobset.yaml: valid, right in its numbers, and what its policies do with each end."""

import json
import math

import jsonschema
import pytest
import yaml
from launch.world import ROOT

import train

SCHEMA = json.loads((ROOT / "tests/vectors/launch/jobset_schema.json").read_text())
JOBSETS = list(yaml.safe_load_all((ROOT / "scripts/jobset.yaml").read_text()))
of_both = pytest.mark.parametrize("jobset", JOBSETS, ids=lambda j: j["metadata"]["name"])


def job_of(jobset: dict) -> dict:
    (job,) = jobset["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def container_of(jobset: dict) -> dict:
    (container,) = job_of(jobset)["template"]["spec"]["containers"]
    return container


@of_both
def test_the_definition_of_jobset_accepts_it(jobset):
    jsonschema.Draft202012Validator(SCHEMA).validate(jobset)


BROKEN = {
    "an unknown key": lambda j: job_of(j).update(backofLimit=0),
    "an unknown action": lambda j: j["spec"]["failurePolicy"]["rules"][0].update(action="Retry"),
    "a rule without name": lambda j: j["spec"]["failurePolicy"]["rules"][0].pop("name"),
    "a text for a number": lambda j: job_of(j).update(parallelism="4"),
    "a container without name": lambda j: container_of(j).pop("name"),
}


@pytest.mark.parametrize("change", BROKEN)
def test_what_the_definition_does_not_accept_is_found(change):
    jobset = json.loads(json.dumps(JOBSETS[0]))
    BROKEN[change](jobset)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset, SCHEMA)


def end_of_job(job: dict, status: int, conditions: set[str]) -> str | None:
    """The reason with which Kubernetes fails a job when a pod has ended so; None: it is retried.

    The first rule that matches decides; FailJob gives the reason PodFailurePolicy. Without a
    match the pod counts against backoffLimit.
    """
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        met = codes and (status in codes["values"]) == (codes["operator"] == "In")
        asked = {(c["type"], c["status"]) for c in rule.get("onPodConditions", [])}
        if met or asked & {(condition, "True") for condition in conditions}:
            return {"FailJob": "PodFailurePolicy", "Ignore": None}[rule["action"]]
    return "BackoffLimitExceeded" if job["backoffLimit"] == 0 else None


def end_of_jobset(jobset: dict, reason: str) -> str:
    """What JobSet does when a job has failed for a reason: the first rule that matches."""
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        if reason in rule.get("onJobFailureReasons", [reason]):
            return rule["action"]
    return "RestartJobSet"


@of_both
@pytest.mark.parametrize(
    "status, conditions, action",
    [
        (75, set(), "RestartJobSetAndIgnoreMaxRestarts"),
        (75, {"DisruptionTarget"}, "RestartJobSetAndIgnoreMaxRestarts"),
        # The node went without notice.
        (137, {"DisruptionTarget"}, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, set(), "FailJobSet"),
        (2, set(), "FailJobSet"),
        (137, set(), "FailJobSet"),
        (143, set(), "FailJobSet"),
    ],
)
def test_75_and_disruptions_start_again_uncounted_and_the_rest_fails(
    jobset, status, conditions, action
):
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 0
    job = job_of(jobset)
    # A pod failure policy is for pods that are not restarted in place, and for a known container.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container_of(jobset)["name"]
    assert end_of_jobset(jobset, end_of_job(job, status, conditions)) == action


@of_both
def test_the_arguments_are_those_of_train(jobset):
    flags, overrides = train.parse(
        [a.replace("$(JOB_COMPLETION_INDEX)", "1") for a in container_of(jobset)["args"]]
    )
    assert flags.workdir.startswith("gs://")
    assert all(key.startswith("data.") for key in (text.split("=")[0] for text in overrides))


@of_both
def test_a_lost_node_is_given_up_soon(jobset):
    tolerations = job_of(jobset)["template"]["spec"]["tolerations"]
    assert {t["key"].split("/")[1] for t in tolerations} == {"not-ready", "unreachable"}
    assert all(t["tolerationSeconds"] == 20 for t in tolerations)


def test_tpu_pods_times_chips_are_the_topology():
    jobset, _ = JOBSETS
    job, spec = job_of(jobset), job_of(jobset)["template"]["spec"]
    topology = spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = container_of(jobset)["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"]
    assert job["parallelism"] * chips == math.prod(map(int, topology.split("x")))


def test_gpu_processes_are_the_pods_and_the_coordinator_is_the_first():
    _, jobset = JOBSETS
    job, name = job_of(jobset), jobset["metadata"]["name"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    flags, _ = train.parse(
        [a.replace("$(JOB_COMPLETION_INDEX)", "1") for a in container_of(jobset)["args"]]
    )
    assert job["parallelism"] == job["completions"] == flags.num_processes
    assert job["completionMode"] == "Indexed" and replicated["replicas"] == 1
    # JobSet's names: <jobset>-<replicated job>-<job>-<pod>.<subdomain, by default the jobset>.
    assert flags.coordinator == f"{name}-{replicated['name']}-0-0.{name}:8482"


def test_both_are_chosen_by_label():
    assert [j["metadata"]["labels"]["accelerator"] for j in JOBSETS] == ["tpu", "gpu"]
    policies = [j["spec"]["failurePolicy"] for j in JOBSETS]
    assert policies[0] == policies[1]
