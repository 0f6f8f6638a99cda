"""The house rules that a machine can check: sizes, layers, fences, light imports."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(
    path
    for folder in ("deit_jax", "configs", "tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
) + [ROOT / "train.py"]

# Package -> the only places that import it.
FENCES = {
    "flax": ("deit_jax/models/",),
    "tensorflow": ("deit_jax/data/",),
    "tensorflow_datasets": ("deit_jax/data/",),
    "orbax": ("deit_jax/checkpoint/",),
    "fsspec": ("deit_jax/storage/",),
    "gcsfs": ("deit_jax/storage/",),
    "onnx": ("deit_jax/evaluation/export/",),
}
NEVER_AT_RUN_TIME = ("torch", "timm", "transformers", "PIL")
# Run by another Python, and inside functions alone.
OF_OTHERS = ("deit_jax/train/speed/timm_worker.py",)

# From the bottom up: a module imports from its own layer and from those before it.
LAYERS = (
    {"errors", "rng", "trees", "train_state", "builders", "storage"},
    {"config", "config_file", "distributed"},
    {"models", "augment", "data", "checkpoint", "losses", "optim", "figures", "tracking"},
    {"pretrained"},
    {"teacher"},
    {"recipe", "evaluation"},
    {"train"},
    {"cli"},
)
# What opens, lists, writes or removes files. What a user names may be in a bucket, so only
# storage/ does that to it.
FILE_MODULES = {"pathlib", "shutil", "tempfile", "glob", "etils"}
OS_FUNCTIONS = {
    *("open", "stat", "lstat", "listdir", "scandir", "walk", "mkdir", "makedirs", "access"),
    *("remove", "unlink", "rmdir", "removedirs", "rename", "renames", "replace", "truncate"),
    *("link", "symlink", "readlink", "chmod", "utime", "statvfs"),
    *("exists", "lexists", "isfile", "isdir", "islink", "getsize", "getmtime"),
    *("expanduser", "abspath", "realpath"),
}
FILES_OUTSIDE_STORAGE = {
    "config_file.py": "recipes are Python files: executed, and importing their neighbors",
    "data/_tensorflow.py": "what TensorFlow writes to stderr, in a file without a name",
    "data/local_files.py": "positional reads by many threads; RemoteFiles does others",
    "data/obtain.py": "puts photos of a notebook on this machine",
    "data/photo_files.py": "walks folders of this machine, links included; StoreFiles does others",
    "data/tfrecord.py": "scans a file of this machine once; of a store whole files are read",
    "distributed/processes.py": "the library's own files",
    "pretrained/formats/safetensors_file.py": "safetensors takes names; load.py gives copies",
    "pretrained/formats/torch_file.py": "files of this machine; load.py gives copies",
    "pretrained/hf_hub.py": "the cache of downloads, which is on this machine",
    "pretrained/hub.py": "the cache of downloads, which is on this machine",
    "pretrained/load.py": "the type of such copies",
    "tracking/provenance.py": "the library's own checkout",
    "tracking/services.py": "where W&B keeps copies of what it sends",
}
# Folders of tests that are not a package's.
OTHER_TESTS = {"constraints", "launch", "runs", "reference", "vectors"}


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


def modules(root: pathlib.Path = ROOT) -> dict[str, pathlib.Path]:
    """`deit_jax.data.order` -> its file; a package stands for its `__init__.py`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((root / "deit_jax").rglob("*.py"))
    }


def dependencies(known: dict[str, pathlib.Path]) -> dict[str, set[str]]:
    """Module -> modules of the library that it imports, anywhere in its text.

    An import from a package counts as one of the submodule where it names one, else of the
    package's `__init__.py`. That Python runs the `__init__.py` as well is left out, so that
    these may gather names from their own modules.
    """
    found = {}
    for name, path in known.items():
        found[name] = uses = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import):
                uses |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: relative import"
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                uses |= {f if f in known else node.module for f in full if node.module in known}
    return found


def layer_of(module: str) -> int:
    room = (module.split(".") + [""])[1]
    where = [number for number, layer in enumerate(LAYERS) if room in layer]
    assert where or not room, f"{module} is in no layer; add it to LAYERS"
    return where[0] if where else -1


def upward(uses: dict[str, set[str]]) -> list[str]:
    """Imports of a module in a higher layer."""
    return [
        f"{name} imports {used}"
        for name in uses
        for used in sorted(uses[name])
        if layer_of(used) > layer_of(name)
    ]


def circles(uses: dict[str, set[str]], depth: int | None = None) -> list[str]:
    """Circles of imports between modules, or between the first `depth` parts of their names."""
    short = {name: ".".join(name.split(".")[:depth]) for name in uses}
    graph = {room: set() for room in short.values()}
    for name, used in uses.items():
        graph[short[name]] |= {short[u] for u in used} - {short[name]}
    # What imports nothing that is left, or is imported by nothing that is left, is in no circle.
    while True:
        used = set().union(*graph.values())
        free = [name for name in graph if name not in used or not graph[name] & graph.keys()]
        if not free:
            return [f"{name} -> {', '.join(sorted(graph[name]))}" for name in sorted(graph)]
        graph = {name: uses & graph.keys() for name, uses in graph.items() if name not in free}


def test_no_import_goes_up_a_layer():
    assert upward(dependencies(modules())) == []


@pytest.mark.parametrize("depth", [None, 2], ids=["modules", "packages"])
def test_no_imports_go_in_a_circle(depth):
    assert circles(dependencies(modules()), depth) == []


def file_uses(tree: ast.AST) -> set[str]:
    """Modules and functions in `tree` that reach files by themselves."""
    found = imported(tree) & FILE_MODULES
    for node in ast.walk(tree):
        call = node.func if isinstance(node, ast.Call) else None
        if isinstance(call, ast.Name) and call.id == "open":
            found.add("open")
        elif isinstance(call, ast.Attribute) and call.attr in OS_FUNCTIONS:
            if ast.unparse(call.value) in ("os", "os.path"):
                found.add(ast.unparse(call))
    return found


def test_only_storage_reaches_files_that_a_user_names():
    package = ROOT / "deit_jax"
    uses = {
        str(path.relative_to(package)): file_uses(tree_of(path))
        for path in FILES
        if package in path.parents
    }
    found = {
        name: sorted(use) for name, use in uses.items() if use and not name.startswith("storage/")
    }
    unknown = {name: use for name, use in found.items() if name not in FILES_OUTSIDE_STORAGE}
    assert not unknown, "use deit_jax.storage, or say in FILES_OUTSIDE_STORAGE why not"
    assert FILES_OUTSIDE_STORAGE.keys() == found.keys(), "an exception that is not needed"


@pytest.mark.parametrize(
    "text",
    [
        "import pathlib",
        "def f():\n    from shutil import rmtree",
        "with open(path) as file: pass",
        "os.makedirs(path)",
        "if os.path.exists(path): pass",
        "os.replace(a, b)",
        "from etils import epath",
    ],
)
def test_a_planted_use_of_files_is_found(text):
    assert file_uses(ast.parse(text))
    assert not file_uses(ast.parse("import os\nos.getpid()\nname.replace(a, b)\npath.open()"))


def test_planted_imports_are_found(tmp_path):
    """Inside a function, under TYPE_CHECKING, and of a package; each in a copy of its own."""
    package = tmp_path / "deit_jax"
    for name in ("__init__", "rng", "losses", "train/__init__", "train/loop", "data/__init__"):
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert not upward(dependencies(modules(tmp_path)))
    (package / "rng.py").write_text("def f():\n    from deit_jax.train import loop\n")
    (package / "losses.py").write_text("if TYPE_CHECKING:\n    import deit_jax.train.loop\n")
    (package / "data/__init__.py").write_text("from deit_jax.losses import cross_entropy\n")
    uses = dependencies(modules(tmp_path))
    assert upward(uses) == [
        "deit_jax.losses imports deit_jax.train.loop",
        "deit_jax.rng imports deit_jax.train.loop",
    ]
    assert not circles(uses)
    (package / "train/loop.py").write_text("import deit_jax.data\n")
    assert circles(dependencies(modules(tmp_path))) == [
        "deit_jax.data -> deit_jax.losses",
        "deit_jax.losses -> deit_jax.train.loop",
        "deit_jax.train.loop -> deit_jax.data",
    ]


def test_the_top_of_the_library_is_small():
    entries = [p for p in (ROOT / "deit_jax").iterdir() if p.name != "__pycache__"]
    assert len(entries) <= 24, "put a new module into the package that it belongs to"


def test_every_package_says_where_a_new_thing_goes():
    packages = [name for name, path in modules().items() if path.name == "__init__.py"]
    for name in packages[1:]:
        documentation = ast.get_docstring(tree_of(modules()[name])) or ""
        assert "\n\n" in documentation, f"{name}: what it is for, and where a new thing goes"
        says = any(word in documentation.lower() for word in ("a new ", "to add", "a line in"))
        assert says, f"{name} does not say where a new thing goes"


def test_tests_mirror_the_packages():
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} - {"__pycache__"}
    packages = {p.parent.name for p in (ROOT / "deit_jax").glob("*/__init__.py")}
    assert folders - OTHER_TESTS <= packages


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
            theirs = name in OF_OTHERS
            assert theirs or package not in NEVER_AT_RUN_TIME, f"{name} imports {package}"
            allowed = FENCES.get(package)
            assert allowed is None or name.startswith(allowed), f"{name} imports {package}"


def test_modules_import_nothing_heavy():
    """Every module, on a machine where these packages do not exist."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "deit_jax").rglob("*.py"))
    ]
    absent = ["tensorflow", "tensorflow_datasets", "sklearn", "matplotlib", "onnx"]
    absent += NEVER_AT_RUN_TIME
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
