"""Every command line in docs/launch/ is one that the scripts and programs accept."""

import pathlib
import re
import shlex
import subprocess

import pytest
import yaml
from launch.slurm_test import submit
from launch.world import ROOT

import train

PAGES = sorted((ROOT / "docs/launch").glob("*.md"))
DONE = {"all": {"print": ["last line"], "status": 0}}


def commands(page: pathlib.Path) -> list[str]:
    """The command lines of the fenced blocks; screens are in blocks that are marked `text`."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line]


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """(assignments before the command, its words)"""
    words, environment = shlex.split(command), {}
    while re.fullmatch(r"[A-Z]+=.*", words[0]):
        key, _, environment[key] = words.pop(0).partition("=")
    return environment, words


def is_training(arguments: list[str]) -> bool:
    flags, overrides = train.parse(arguments)
    # The config's own options are checked in all documents by docs_test.py.
    assert (ROOT / flags.config.partition(":")[0]).exists() or flags.config == "FILE"
    assert all(re.match(r"[a-z_]+(\.[a-z_0-9]+)?=", text) for text in overrides)
    return True


def jobsets() -> dict[str, dict]:
    documents = yaml.safe_load_all((ROOT / "scripts/jobset.yaml").read_text())
    return {document["metadata"]["name"]: document for document in documents}


def docker(words: list[str]) -> bool:
    text = (ROOT / "Dockerfile").read_text()
    if words[1] == "build":
        (target,) = (word.split("=")[1] for word in words if word.startswith("--target="))
        return f" AS {target}\n" in text and words[-1] == "."
    if words[1] == "run":
        image = next(i for i, word in enumerate(words) if word.startswith("deit-jax:"))
        return is_training(words[image + 1 :])
    return words[1] == "push" and words[2].rsplit(":")[-1] in ("tpu", "cuda")


def kubectl(words: list[str]) -> bool:
    if words[1] == "apply":
        key, _, value = words[words.index("-l") + 1].partition("=")
        labels = [jobset["metadata"]["labels"].get(key) for jobset in jobsets().values()]
        return words[words.index("-f") + 1] == "scripts/jobset.yaml" and labels.count(value) == 1
    if words[1] == "logs":
        # JobSet's name for the first of its jobs.
        names = [f"{n}-{j['spec']['replicatedJobs'][0]['name']}-0" for n, j in jobsets().items()]
        return words[-1] in [f"job/{name}" for name in names]
    return words[1] in ("get", "delete") and words[-2] == "jobset" and words[-1] in jobsets()


def sky(words: list[str]) -> bool:
    assert words[1:4] == ["jobs", "launch", "scripts/sky.yaml"]
    envs = yaml.safe_load((ROOT / words[3]).read_text())["envs"]
    given = [words[i + 1] for i, word in enumerate(words) if word == "--env"]
    assert {text.split("=")[0] for text in given} <= set(envs)
    flags = {word.split("=")[0] for word in words[4:] if word.startswith("--")}
    return flags <= {"--env", "--gpus", "--num-nodes"}


def pip(words: list[str]) -> bool:
    (extras,) = re.findall(r"\.\[(.*)\]", words[-1])
    return all(
        re.search(rf"^{extra} =", (ROOT / "setup.cfg").read_text(), re.M)
        for extra in extras.split(",")
    )


def python(words: list[str]) -> bool:
    return words[1] == "train.py" and is_training(words[2:])


def until(words: list[str]) -> bool:
    end = next(i for i, word in enumerate(words) if word.endswith(";"))
    assert words[end + 1 : end + 5] == ["[", "$?", "-ne", "75"]
    return python([*words[1:end], words[end].rstrip(";")])


OTHERS = {f.__name__: f for f in (docker, kubectl, sky, pip, python, until)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_accepted(page, tmp_path):
    shown = commands(page)
    assert shown
    for command in shown:
        environment, words = split(command)
        if words[0] == "sbatch":
            script = words.index("scripts/slurm.sbatch")
            assert all(re.fullmatch(r"--[a-z-]+=\S+", word) for word in words[1:script])
            status, ((_, *srun),) = submit(tmp_path, *words[script + 1 :], **environment)
            assert status == 0 and is_training(srun[srun.index("train.py") + 1 :])
            (tmp_path / "calls").unlink()
        elif words[0] != "scripts/tpu_vm.sh":
            assert OTHERS[words[0]](words), command


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "tpu_vm.sh create" in p.read_text()], ids=lambda p: p.stem
)
def test_the_launches_of_a_page_train_and_end(page, cloud):
    cloud = cloud(runs=[DONE])
    for command in commands(page):
        _, (script, *words) = split(command)
        assert script == "scripts/tpu_vm.sh"
        cloud(*words)
    trained = [call["arguments"] for call in cloud.calls("training")]
    assert trained and all(is_training(arguments[2:]) for arguments in trained)
    assert cloud.nodes() == {}


def test_commands_within_sentences_exist():
    usage = subprocess.run(["scripts/tpu_vm.sh"], cwd=ROOT, capture_output=True, text=True).stderr
    for page in [*PAGES, ROOT / "docs/training.md"]:
        for verb in re.findall(r"scripts/tpu_vm\.sh ([a-z]+)", page.read_text()):
            assert f"scripts/tpu_vm.sh {verb} NAME" in usage, page
