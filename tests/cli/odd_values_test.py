"""Odd values on the command line: one printable line, exit status 2, nothing done."""

import pytest
import tiny_runs

import train
from deit_jax import cli

LONG, ESCAPE = "a" * 300, "\x1b[31m"
RECIPE = f"--config={tiny_runs.ROOT / 'configs/quickstart.py'}:plain,tiny"
DEIT = f"--config={tiny_runs.ROOT / 'configs/deit.py'}"
SIZES = ("explain", f"{DEIT}:ti", "--records=9999", "--classes=9")


def refused(capsys, run, *arguments):
    """The one line on the terminal, besides what `train` says of its processes first."""
    try:
        status = run(list(arguments))
    except SystemExit as ended:
        status = ended.code
    out, text = capsys.readouterr()
    (line,) = [line for line in text.splitlines() if not line.startswith("processes: ")]
    assert (status, out) == (2, "") and line.isprintable()
    assert len(line) < 5100
    return line


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "the following arguments are required: command"),
        ((ESCAPE,), "invalid choice: '\\x1b[31m'"),
        (("explain", ESCAPE), "unknown model '\\x1b[31m'; known: "),
        (("explain", "z" * 100_000), "; known: deit"),
        (("explain", "--config="), "no recipe ''"),
        (("explain", f"--config={LONG}"), "no recipe 'aaa"),
        (("explain", f"{DEIT}:{ESCAPE}"), "known: ti, s, b"),
        (("explain", f"{DEIT}:ti", "--records=0"), "from 1, not '0'"),
        (("explain", f"{DEIT}:ti", "--classes=nan"), "from 1, not 'nan'"),
        (("explain", f"{DEIT}:ti", f"--devices=1{'0' * 30}"), "from 1, not '1000"),
        ((*SIZES, "--images-per-second=0"), "a number above 0, not '0'"),
        ((*SIZES, "--images-per-second=inf"), "a number above 0, not 'inf'"),
        (
            (*SIZES, "--config.train.batch_size=" + "-" * 100_000 + "1"),
            "takes int (now 1024), not '-",
        ),
        ((*SIZES, "--config.train.batch_size=" + "9" * 10_000), "takes int (now 1024), not '999"),
        ((*SIZES, f"--config.{ESCAPE}=1"), "unknown key config.\\x1b[31m; known: augment, "),
        ((*SIZES, "--config.a.b.c=1"), "unknown key config.a; known: augment, "),
        (("benchmark",), "give model names, such as deit_small_patch16_224, or --config"),
        (("benchmark", "deit_x"), "unknown model 'deit_x'; known: deit"),
        (("benchmark", "deit_x", f"{DEIT}:ti"), "not both: deit_x"),
        (("benchmark", f"{DEIT}:ti", "--batch-sizes=8,0"), "from 1, not '0'"),
        (("benchmark", f"{DEIT}:ti", "--what=x"), "unknown --what 'x'; known: inference, training"),
        (("benchmark", f"{DEIT}:ti", "--devices=99"), "--devices=99, but this process has 8"),
        (("benchmark", f"{DEIT}:ti,tiny", "--attention=x"), "unknown attention 'x'; known: auto"),
        (("benchmark", f"{DEIT}:ti,tiny", "--dtype=x"), "unknown dtype 'x'"),
        (("benchmark", f"{DEIT}:ti", "--config.step.x=1"), "unknown key config.step.x"),
        (("augmentations", RECIPE, "--seed=-1"), "from 0 to 4294967295, not '-1'"),
        (("data", "--source=folder", f"--path={LONG}"), "aaa"),
        (("compare", f"x={LONG}"), "aaa"),
        (("replay", f"--dump={LONG}"), "aaa"),
        (("predict", f"--checkpoint={LONG}", __file__), "not a published checkpoint"),
        (("predict", f"--checkpoint={ESCAPE}", __file__), "\\x1b[31m: no such file"),
        (("predict", "--checkpoint=x", f"{LONG}.png"), "aaa.png"),
        (
            ("predict", "--checkpoint=x", __file__, "--top=0"),
            "--top: takes a whole number from 1, ",
        ),
        (("predict", "--checkpoint=x", __file__, "--crop-ratio=nan"), "from 0.1 to 1, not 'nan'"),
        (("attention", "--checkpoint=x", __file__, "--crop-ratio=0"), "from 0.1 to 1, not '0'"),
        (("features", ".", "x.npz", "--checkpoint=x", "--crop-ratio=2"), "from 0.1 to 1, not '2'"),
        (("evaluate", "--checkpoint=x", "--crop-ratio=-1"), "from 0.1 to 1, not '-1'"),
        (("predict", "--checkpoint=x", __file__, "--model-kwargs=" + "[" * 99_999), "JSON object"),
    ],
)
def test_commands(capsys, arguments, words):
    assert words in refused(capsys, cli.main, *arguments)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--config=x.py",), "required: --workdir"),
        (("--num_processes=many",), "invalid int value: 'many'"),
        (("--config=", "--workdir=w"), "no recipe ''"),
        ((RECIPE, "--workdir="), "--workdir is empty"),
        ((RECIPE, "--workdir=w", "--config.seed=-1"), "config.seed must be 0 to 4294967295"),
        ((RECIPE, "--workdir=w", f"--config.init={LONG}"), "not a published checkpoint"),
        ((f"--config={LONG}", "--workdir=w"), "no recipe 'aaa"),
        ((RECIPE, "--workdir=w", f"--{ESCAPE}"), "unknown argument '--\\x1b[31m'"),
        ((RECIPE, "--workdir=w", "--config.train.batch_size"), "has no value"),
        ((RECIPE, "--workdir=w", "--config.model.name=" + "z" * 100_000), "; known: deit"),
    ],
)
def test_train(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, train.main, *arguments)
