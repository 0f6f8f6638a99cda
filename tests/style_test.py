"""The house rules that a machine can check: sizes, fences between packages, light imports."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(
    path
    for folder in ("deit_jax", "configs", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
) + [ROOT / "train.py"]

# Package -> the only places that import it.
FENCES = {
    "flax": ("deit_jax/models/",),
    "tensorflow": ("deit_jax/data/",),
    "tensorflow_datasets": ("deit_jax/data/",),
    "orbax": ("deit_jax/checkpoint/",),
}
NEVER_AT_RUN_TIME = ("torch", "timm", "transformers", "PIL")


def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path):
    text = path.read_text()
    assert text.count("\n") <= 350, f"{path} is long; one idea a file"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documentation = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno + 1 - documentation.count("\n")
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"


def test_fences_hold():
    for path in (ROOT / "deit_jax").rglob("*.py"):
        name = str(path.relative_to(ROOT))
        for package in imported(tree_of(path)):
            assert package not in NEVER_AT_RUN_TIME, f"{name} imports {package}"
            allowed = FENCES.get(package)
            assert allowed is None or name.startswith(allowed), f"{name} imports {package}"


def test_modules_import_nothing_heavy():
    """Every module, on a machine where these packages do not exist."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "deit_jax").rglob("*.py"))
    ]
    absent = ["tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", *NEVER_AT_RUN_TIME]
    code = (
        "import sys, importlib\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"
        f"for name in {modules}: importlib.import_module(name)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_every_source_file_has_a_docstring():
    for path in FILES:
        tree = tree_of(path)
        assert not tree.body or ast.get_docstring(tree), f"{path} does not say what it is"


def test_train_is_flags_and_one_call():
    assert (ROOT / "train.py").read_text().count("\n") <= 60
