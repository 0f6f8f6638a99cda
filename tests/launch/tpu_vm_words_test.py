"""What scripts/tpu_vm.sh asks for and what it refuses, without a run."""

import pytest
from launch.world import ROOT


@pytest.mark.parametrize(
    "type_, image",
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-64", "tpu-ubuntu2204-base"),
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_the_image_follows_the_generation(cloud, type_, image):
    cloud = cloud()
    cloud("create", "deit", f"--type={type_}", "--zone=z")
    (create,) = (c for c in cloud.calls() if c["command"].endswith("create"))
    assert create["flags"]["--version"] == image
    assert create["flags"]["--accelerator-type"] == type_


@pytest.mark.parametrize(
    "words, message",
    [
        ((), "scripts/tpu_vm.sh create NAME"),
        (("train", "deit"), "scripts/tpu_vm.sh create NAME"),
        (("setup", "other"), "unknown TPU VM other; known: deit"),
        (("create", "a", "--zone=z"), "unknown --type="),
        (("create", "a", "--type=tpu7x-8", "--zone=z"), "else give --image"),
        (("create", "a", "--type=v4-8"), "--zone is missing"),
        (("create", "a", "--type=v4-8", "--zone=z", "--sopt"), "unknown option --sopt; known: "),
        (("run", "deit", "--workdir=runs/s"), "--workdir=gs://BUCKET/RUN is needed"),
        (("watch", "deit"), "nothing to run on deit"),
    ],
)
def test_mistakes_are_one_line_and_ask_nothing_of_the_cloud(cloud, words, message):
    cloud = cloud()
    cloud("create", "deit", "--type=v4-8", "--zone=z")
    before = len(cloud.calls())
    assert message in cloud(*words, status=2)
    assert len(cloud.calls()) == before


def test_the_scripts_are_short():
    for path in (ROOT / "scripts").iterdir():
        assert path.read_text().count("\n") <= 200, path
