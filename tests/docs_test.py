"""Whatever documents, docstrings and comments name exists: options, metrics, commands, files."""

import argparse
import ast
import importlib
import io
import pathlib
import re
import shlex
import tokenize
from collections.abc import Iterable, Iterator, Mapping

import pytest

from deit_jax import builders, cli, models
from deit_jax import config as config_lib
from deit_jax.errors import ConfigError
from deit_jax.train import schema

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.stem != "common")
SUFFIXES = (".py", ".md", ".sbatch", ".sh", ".yaml")
FOLDERS = ("deit_jax", "configs", "benchmarks", "tests", "scripts", "docs")

# Files of other code bases, and a name that stands for any.
ELSEWHERE = {
    "README_revenge.md",
    "README_deit.md",
    "auto_augment.py",
    "main.py",
    "file.py",
    "configs/mine.py",
    "deit_jax/scripts/tpu_worker.sh",
    "install.sh",
    "jobset-crd.yaml",
    "./mine.py",
}
PATH = re.compile(
    r"(?<![\w/<>*.:-])((?:[\w.-]+/)*[\w.-]+\.(?:py|md|sbatch|sh|yaml|cfg|toml))(?![\w/])"
)
FOLDER = re.compile(r"`((?:[\w.-]+/)+)`")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
SOURCE = re.compile(r"(?:src|srcset)=\"(?!https?://)([^\"]+)")
VARIANT = re.compile(r"(?<![\w/.-])(?:configs/)?([\w*-]+\.py):([\w,|\\]*[\w])")
RECIPE = re.compile(r"--config=([a-z_0-9]+)(?=:|[\s`]|$)")
OPTION = re.compile(r"(--)?\bconfig\.([a-z_0-9]+(?:\.[a-z_0-9]+)?)(?:=([^\s`'\";,)]+))?")
METRIC = re.compile(
    r"(?<![\w/.])(train|eval|eval_ema|val)/([a-z_0-9]+(?:/[a-z_0-9]+)*)(?![\w/.<*-])"
)
COMMAND = re.compile(r"deit-jax +([a-z_]+)((?: +[^\s`|]+)*)")
SCRIPT = re.compile(r"python3? +((?:[\w.-]+/)*[\w-]+\.py)((?: +[^\s`|]+)*)")
TARGET = re.compile(r"(?:^ *|`|&& )make ([a-z]+)(?=`| *$| +#)")
PLACEHOLDER = re.compile(r"[A-Z_]{2,}|[A-Z]|\.\.\.|.*[<>{*].*|FILE.*|.*DIR.*")
NO_OPTIONS = ("section.key", "key", "a.b")

Text = tuple[str, int, str]


def documents() -> list[Text]:
    """(file, line, text) of every document, docstring and comment; commands on one line."""
    files = [
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "Makefile", "Dockerfile", "train.py")
    ]
    for folder in FOLDERS:
        files += [p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in SUFFIXES]
    found = []
    for path in files:
        name, text = str(path.relative_to(ROOT)), path.read_text()
        lines = prose(text) if path.suffix == ".py" else list(enumerate(text.splitlines(), 1))
        found += [(name, line, part) for line, part in joined(lines)]
    return found


def prose(code: str) -> list[tuple[int, str]]:
    """Numbered lines of the docstrings and comments of Python code."""
    found, lines = [], code.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            found.append((token.start[0], token.string))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            found += list(enumerate(lines, 1))[text.lineno - 1 : text.end_lineno]
    return sorted(found)


def joined(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines that end with a backslash, together with the next."""
    start, held = 0, ""
    for number, text in lines:
        start = start if held else number
        if text.endswith("\\"):
            held += text[:-1].rstrip() + " "
            continue
        yield start, held + (text.strip() if held else text)
        held = ""


class Names:
    """What exists: variants, options with a config that has them, metrics, commands, targets."""

    def __init__(self):
        self.variants, self.carrier, self.options = {}, {}, set(schema.TOP)
        for file in CONFIGS:
            space = {}
            exec(compile((ROOT / "configs" / file).read_text(), file, "exec"), space)
            self.variants[file] = (set(space["VARIANTS"]), set(space["MODES"]))
            for variant in space["VARIANTS"]:
                spec = str(ROOT / "configs" / f"{file}:{variant}")
                for key in config_lib.flatten(schema.load(spec)):
                    self.carrier.setdefault(key, spec)
        for section, build in schema.SECTIONS.items():
            self.options |= {section} | {f"{section}.{key}" for key in every_option(build)}
        self.options |= set(self.carrier)
        text = "\n".join(path.read_text() for path in (ROOT / "deit_jax").rglob("*.py"))
        # Names of metrics are put together from words; each is a string of the code.
        self.words = set(re.findall(r"[\"/]([a-z_0-9]+)(?=[\"/])", text))
        self.parsers = cli_parsers()
        self.targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
        self.files = {p.name for folder in (*FOLDERS, ".ci") for p in (ROOT / folder).rglob("*")}


def every_option(build) -> set[str]:
    """The options of a builder and of every entry of its tables."""
    if isinstance(build, builders.Section):
        names = models.list_models() if "name" in build.choosers else [""]
        return {key for name in names for key in build.options({"name": name} if name else {})}
    own = builders.keywords(build)
    found = set(own)
    for key, choice in getattr(build, "choices", {}).items():
        default = own[key].default if key else None
        # Where a folder may be named, naming one is the other choice.
        values = ["", "DIR"] if default == "" else [default]
        entries = choice.values() if isinstance(choice, Mapping) else sum(map(choice, values), [])
        for entry in entries:
            found |= every_option(entry) if callable(entry) else set()
    return found


def cli_parsers() -> Mapping[str, argparse.ArgumentParser]:
    """Subcommand -> its parser."""
    subparsers = argparse.ArgumentParser().add_subparsers()
    for path in sorted(pathlib.Path(cli.__path__[0]).glob("*.py")):
        module = importlib.import_module(f"deit_jax.cli.{path.stem}")
        if hasattr(module, "add_parser"):
            module.add_parser(subparsers)
    return subparsers.choices


def problems(texts: Iterable[Text], names: Names) -> list[str]:
    """`file:line: what does not exist` for everything that the texts name in vain."""
    checks = (recipes, options, metrics, commands, scripts, targets, paths)
    return [
        f"{file}:{line}: {problem}"
        for file, line, text in texts
        for check in checks
        for problem in check(text, names, ROOT / file)
    ]


def variants(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    for match in VARIANT.finditer(text):
        config, listed = match.groups()
        if config not in names.variants:
            if match[0].startswith("configs/") and f"configs/{config}" not in ELSEWHERE:
                yield f"no config file {config}"
            continue
        known, modes = names.variants[config]
        for variant in listed.replace("\\", "").split("|"):
            name, *chosen = variant.split(",")
            if not PLACEHOLDER.fullmatch(name) and name not in known | modes:
                yield f"{config} has no variant {name}"
            if set(chosen) - modes - {""}:
                yield f"{config} has no mode {','.join(chosen)}"


def recipes(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    """Recipes by name: `finetune:s` is `configs/finetune.py:s`."""
    for name in RECIPE.findall(text):
        if f"{name}.py" not in names.variants:
            yield f"no recipe {name}"
    yield from variants(RECIPE.sub(r"configs/\1.py", text), names, file)


def options(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    for dashes, key, value in OPTION.findall(text):
        section = key.split(".")[0]
        if key in NO_OPTIONS or (not dashes and section not in names.options):
            continue
        if key not in names.options:
            yield f"no option config.{key}"
        elif dashes and value and key in names.carrier and not PLACEHOLDER.fullmatch(value):
            try:
                schema.load(names.carrier[key], [f"{key}={value}"])
            except ConfigError as error:
                yield str(error)


def metrics(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    for prefix, rest in METRIC.findall(text):
        if (ROOT / "deit_jax" / prefix / f"{rest}.py").exists():
            continue
        if prefix == "val" or set(rest.split("/")) - names.words:
            yield f"no metric {prefix}/{rest}"


def commands(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    for command, rest in COMMAND.findall(text):
        if command not in names.parsers:
            yield f"no command deit-jax {command}"
            continue
        known = names.parsers[command]._option_string_actions
        for flag in flags(rest):
            if flag not in known and not flag.startswith("--config."):
                yield f"deit-jax {command} has no {flag}"


def scripts(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    for script, rest in SCRIPT.findall(text):
        path = ROOT / script
        if not path.exists():
            yield f"no script {script}"
            continue
        if script == "train.py":
            yield from commands(f"deit-jax train {rest}", names, file)
            continue
        code = path.read_text()
        for flag in flags(rest):
            if f'"{flag}"' not in code and not flag.startswith("--config."):
                yield f"{script} has no {flag}"


def flags(arguments: str) -> list[str]:
    try:
        words = shlex.split(arguments, comments=True)
    except ValueError:
        words = arguments.split()
    return [
        re.split(r"[=,.)\]]", word.strip("[]"))[0] if not word.startswith("--config.") else word
        for word in words
        if word.startswith("--") and len(word) > 2
    ]


def targets(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    for target in TARGET.findall(text):
        if target not in names.targets:
            yield f"no target make {target}"


def paths(text: str, names: Names, file: pathlib.Path) -> Iterator[str]:
    found = PATH.findall(text) + FOLDER.findall(text) + LINK.findall(text) + SOURCE.findall(text)
    for path in found:
        if path.endswith("/") and path.split("/")[0] not in FOLDERS:
            continue
        places = (ROOT, ROOT / "deit_jax", ROOT / "tests", file.parent, file.parent.parent)
        if path in ELSEWHERE or any((place / path).exists() for place in places):
            continue
        if "/" in path or path not in names.files:
            yield f"no file {path}"


@pytest.fixture(scope="module")
def names() -> Names:
    return Names()


def test_everything_that_is_named_exists(names):
    assert problems(documents(), names) == []


PLANTED = {
    "see configs/finetune.py:b384_distilled": "finetune.py has no variant b384_distilled",
    "`deit.py:ti,tinny`": "deit.py has no mode tinny",
    "--config=configs/deti.py:b": "no config file deti.py",
    "--config=deti:b": "no recipe deti",
    "`--config=finetune:xl`": "finetune.py has no variant xl",
    "--config.train.batchsize=3": "no option config.train.batchsize",
    "`config.teacher.weights` is not set": "no option config.teacher.weights",
    "--config.train.total_epochs=long": "config.train.total_epochs takes float",
    "--config.model.name=deit_huge": "unknown model 'deit_huge'",
    "the metric `val/ema_top1`": "no metric val/ema_top1",
    "the metric `train/perplexity`": "no metric train/perplexity",
    "`deit-jax inspect FILE`": "no command deit-jax inspect",
    "deit-jax evaluate --checkpoint=PATH --heads=both": "deit-jax evaluate has no --heads",
    "python train.py --config=FILE --work_dir=DIR": "deit-jax train has no --work_dir",
    "python benchmarks/table4.py": "no script benchmarks/table4.py",
    "run `make quick`": "no target make quick",
    "in `train/nothing.py`": "no file train/nothing.py",
    "in `tests/vectors/nothing/`": "no file tests/vectors/nothing/",
    "[this](docs/nothing.md)": "no file docs/nothing.md",
}


@pytest.mark.parametrize("text", PLANTED)
def test_what_does_not_exist_is_found(text, names):
    found = problems([("README.md", 7, text)], names)
    assert any(f.startswith("README.md:7: ") and PLANTED[text] in f for f in found), found


def test_docstrings_comments_and_continued_commands_are_read():
    code = '"""A.\n\n    python x \\\n        --config.a.b=1\n"""\nx = 1  # comment\ns = "string"\n'
    assert list(joined(prose(code))) == [
        (1, '"""A.'),
        (2, ""),
        (3, "    python x --config.a.b=1"),
        (5, '"""'),
        (6, "# comment"),
    ]
