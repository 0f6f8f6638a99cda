"""The Dockerfile, without building it: what it copies, installs and starts."""

import configparser
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
from typing import NamedTuple

import pytest
from launch.world import ROOT

from deit_jax import cli


class Stage(NamedTuple):
    name: str
    base: str
    lines: list[tuple[str, str]]


def stages(text: str) -> dict[str, Stage]:
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(name, base, [])
        elif word and not word.startswith("#"):
            list(found.values())[-1].lines.append((word, rest))
    return found


STAGES = stages((ROOT / "Dockerfile").read_text())
TARGETS = ("tpu", "cuda")
of_targets = pytest.mark.parametrize("target", TARGETS)


def steps(target: str) -> list[tuple[str, str]]:
    stage = STAGES[target]
    return steps(stage.base) + stage.lines if stage.base in STAGES else stage.lines


def extras() -> set[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return set(setup["options.extras_require"])


def sent() -> set[str]:
    """The entries at the top of the checkout that .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return {rule[1:] for rule in rules if rule.startswith("!")}


@of_targets
def test_what_it_copies_exists_and_is_sent(target):
    for word, rest in steps(target):
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert source == "." or source in sent()
    assert all((ROOT / name).exists() for name in sent())


@of_targets
def test_dependencies_come_before_code(target):
    lines = [line for line in steps(target)]
    first_code = lines.index(("COPY", ". ."))
    dependencies = [i for i, line in enumerate(lines) if "pip install '.[" in line[1]]
    assert dependencies and max(dependencies) < first_code


@of_targets
def test_extras_exist(target):
    named = re.findall(r"\.\[([\w,]+)\]", str(steps(target)))
    assert named and set(named[0].split(",")) <= extras() and target in named[0]


def test_extras_of_the_other_launchers_exist():
    for path in ("scripts/tpu_worker.sh", "scripts/sky.yaml"):
        (named,) = re.findall(r"\.\[([\w,$]+)\]", (ROOT / path).read_text())
        assert set(named.replace("$EXTRA,", "").split(",")) <= extras(), path


@of_targets
def test_it_does_not_run_as_root_and_starts_training(target):
    last = dict(steps(target))
    assert last["USER"] == "1000"
    assert entry_point(target)


def entry_point(target: str) -> list[str]:
    words = [word.strip(' "') for word in dict(steps(target))["ENTRYPOINT"].strip("[]").split(",")]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert f"{words[0]} = deit_jax.cli:main" in setup["options.entry_points"]["console_scripts"]
    assert words[1] in [command.__name__.split(".")[-1] for command in cli.COMMANDS]
    return words


@pytest.mark.long
@of_targets
def test_its_lines_install_and_the_entry_point_answers(target, tmp_path):
    """In an environment that sees the packages of this one; what is missing is only resolved."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {**os.environ, "PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}"}
    folder = tmp_path / "image"
    folder.mkdir()
    for word, rest in steps(target):
        if word == "COPY":
            names = sent() if rest == ". ." else rest.split()[:-1]
            for name in names:
                copy(ROOT / name, folder / name)
        elif word == "RUN" and "useradd" not in rest:
            # The accelerator's libraries are gigabytes: found, but not fetched.
            line = rest.replace("pip install '", "pip install --dry-run '")
            subprocess.run(line, shell=True, check=True, cwd=folder, env=environment)
    command = [*entry_point(target), "--help"]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "--workdir" in ran.stdout, ran.stderr


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    if source.is_dir():
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignore)
    else:
        shutil.copy(source, target)
