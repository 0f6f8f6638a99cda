"""Config files, completion from builders, overrides, and what is said when they are wrong."""

import re

import pytest

from deit_jax import builders
from deit_jax import config as config_lib
from deit_jax.errors import ConfigError

FILE = """
from ml_collections import ConfigDict
VARIANTS = ("small", "large")
def get_config(variant):
    return ConfigDict({"model": {"width": {"small": 8, "large": 16}[variant]}, "optim": {}})
"""


def make_model(
    classes,
    *,
    width: int = 4,
    rate: float = 0.5,
    name: str = "net",
    sizes: tuple[float, ...] = (1.0, 2.0),
    words: tuple[str, ...] = (),
    wide: bool = False,
    limit: int | None = None,
):
    """A builder; `classes` is supplied by the loop."""


def adam(*, beta: float = 0.9):
    """An entry of a table."""


def sgd(*, momentum: float | None = None):
    """Another."""


@builders.chooses(kind={"adam": adam, "sgd": sgd})
def make_optim(params, *, lr: float = 0.1, kind: str = "sgd", clip: float | None = 1.0, **options):
    """A builder that chooses."""


SCHEMA = config_lib.Schema(
    {"model": make_model, "optim": make_optim}, {"seed": builders.Option(0, int)}
)


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(FILE)

    def load(variant=":small", *overrides):
        return config_lib.load_config(f"{file}{variant}", overrides, schema=SCHEMA)

    return load


def test_defaults_come_from_the_builders(load):
    config = load()
    assert config.to_dict() == {
        "seed": 0,
        "model": {
            "width": 8,
            "rate": 0.5,
            "name": "net",
            "sizes": (1.0, 2.0),
            "words": (),
            "wide": False,
            "limit": None,
        },
        "optim": {"lr": 0.1, "kind": "sgd", "clip": 1.0, "momentum": None},
    }
    assert load(":large").model.width == 16
    assert load("").model.width == 8, "the first variant is the default"


@pytest.mark.parametrize(
    "override, key, value",
    [
        ("seed=7", "seed", 7),
        ("model.width=32", "width", 32),
        ("model.rate=1", "rate", 1.0),
        ("model.rate=3e-4", "rate", 3e-4),
        ("model.name=other=net", "name", "other=net"),
        ("model.name=", "name", ""),
        ("model.wide=true", "wide", True),
        ("model.wide=False", "wide", False),
        ("model.sizes=(3,4.5)", "sizes", (3.0, 4.5)),
        ("model.sizes=3,4", "sizes", (3.0, 4.0)),
        ("model.words=one, two", "words", ("one", "two")),
        ("model.words=", "words", ()),
        ("model.limit=5", "limit", 5),
        ("model.limit=none", "limit", None),
        ("optim.momentum=0.9", "momentum", 0.9),
        ("optim.clip=none", "clip", None),
    ],
)
def test_overrides_take_the_type_of_the_default(load, override, key, value):
    flat = config_lib.flatten(load(":small", override))
    assert flat[override.partition("=")[0]] == value
    assert type(flat[override.partition("=")[0]]) is type(value)


@pytest.mark.parametrize(
    "override, message",
    [
        ("model.widht=3", "unknown key config.model.widht; did you mean model.width"),
        ("modle.width=3", "unknown key config.modle; did you mean model.width?"),
        ("width=3", "unknown key config.width; did you mean model.width?"),
        ("model=3", "config.model is a section; set one of its keys: model."),
        ("model.width=abc", "config.model.width takes int (now 8), not 'abc'"),
        ("model.width=1.5", "config.model.width takes int (now 8), not '1.5'"),
        ("model.width=none", "config.model.width takes int (now 8), not 'none'"),
        ("model.width=True", "config.model.width takes int (now 8), not 'True'"),
        ("model.rate=fast", "config.model.rate takes float (now 0.5), not 'fast'"),
        ("model.wide=yes", "config.model.wide takes bool (now False), not 'yes'"),
        ("model.sizes=('a',)", "config.model.sizes takes tuple[float, ...]"),
        ("model.limit=1.5", "config.model.limit takes int or None (now None), not '1.5'"),
        ("model.classes=3", "unknown key config.model.classes; known: model.limit"),
        ("optim.bta=3", "unknown key config.optim.bta; known: optim."),
        ("model.width", "config.model.width has no value; write --config.model.width=VALUE"),
    ],
)
def test_wrong_overrides_are_refused_with_the_cure(load, override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(":small", override)


def test_several_mistakes_are_reported_together(load):
    with pytest.raises(ConfigError) as caught:
        load(":small", "model.widht=3", "optim.lr=x", "sede=1")
    assert len(str(caught.value).splitlines()) == 3


def test_unknown_variant_and_file_name_what_exists(load, tmp_path):
    with pytest.raises(ConfigError, match="unknown variant 'tiny' of .*known: small, large"):
        load(":tiny")
    with pytest.raises(ConfigError, match="no config file .*has: .*recipe.py"):
        config_lib.load_config(str(tmp_path / "recipes.py"), schema=SCHEMA)


def test_unknown_keys_of_the_file_itself_are_reported(tmp_path):
    file = tmp_path / "old.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'model': {'widht': 3}, 'optimizer': {}})\n"
    )
    with pytest.raises(ConfigError) as caught:
        config_lib.load_config(str(file), schema=SCHEMA)
    assert "unknown key config.optimizer; known: optim" in str(caught.value)
    assert "unknown key config.model.widht; known: width" in str(caught.value)


def test_options_are_those_of_the_chosen_entry(load):
    assert "momentum" not in load(":small", "optim.kind=adam").optim
    assert load(":small", "optim.kind=adam", "optim.beta=0.5").optim.beta == 0.5
    with pytest.raises(
        ConfigError, match=r"optim.beta .an option of optim.kind=adam.; known: optim.clip"
    ):
        load(":small", "optim.beta=0.5")
    with pytest.raises(
        ConfigError, match=r"config.optim.kind: unknown kind 'adm'; known: adam, sgd"
    ):
        load(":small", "optim.kind=adm", "optim.momentum=1")


def test_what_a_file_sets_for_another_entry_goes_with_the_choice(tmp_path):
    file = tmp_path / "sgd.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'optim': {'kind': 'sgd', 'momentum': 0.5}})\n"
    )
    load = lambda *overrides: config_lib.load_config(str(file), overrides, schema=SCHEMA)
    assert load().optim.momentum == 0.5
    assert load("optim.kind=adam").optim.to_dict() == {
        "kind": "adam",
        "lr": 0.1,
        "clip": 1.0,
        "beta": 0.9,
    }
    file.write_text(file.read_text().replace("'sgd'", "'adam'"))
    with pytest.raises(ConfigError, match=r"sgd.py:3: unknown key config.optim.momentum"):
        load()


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:\n", r"1: SyntaxError"),
        ("import math\nimport no_such_package\n", r"2: ModuleNotFoundError: No module named"),
        ("x = 1\n\ny = x / 0\n", r"3: ZeroDivisionError"),
        ("def get_config():\n    return missing\n", r"2: NameError"),
        ("x = 1\ndef get_config():\n    pass\n", r"2: get_config must return .*, not None"),
        ("def get_config():\n    return {}\n", r"1: get_config must return .*, not a dict"),
        ("x = 1\n", r"1: there is no function get_config"),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    return ConfigDict({\n        'model': 3})\n",
            r"4: config.model is a section of options, not 3",
        ),
        (
            "from ml_collections import ConfigDict\n"
            "def get_config():\n    c = ConfigDict({'model': {}})\n"
            "    c.model.width = 'wide'\n    return c\n",
            r"4: config.model.width takes int, not 'wide'",
        ),
        ("raise SystemExit(3)\n", r"1: SystemExit: 3"),
    ],
)
def test_a_file_that_does_not_load_is_one_line_with_its_place(tmp_path, text, message):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config_lib.load_config(str(file), schema=SCHEMA)
    assert re.match(rf".*broken\.py:{message}", str(caught.value))
    assert "\n" not in str(caught.value)


def test_config_is_locked(load):
    with pytest.raises(AttributeError, match="locked"):
        load().model.depth = 3


def test_arguments_become_overrides():
    arguments = ["--config.a.b=1", "--config.c", "2", "--config.d=e=f"]
    assert config_lib.split_overrides(arguments) == ["a.b=1", "c=2", "d=e=f"]
    with pytest.raises(ConfigError, match="unknown argument '--confg.a=1', 'stray'"):
        config_lib.split_overrides(["--confg.a=1", "stray"])


def test_differences_name_both_values():
    old = {"a": {"b": 1, "gone": 2}, "c": [1, 2]}
    new = {"a": {"b": 3}, "c": (1, 2)}
    assert config_lib.differences(old, new) == {"a.b": (1, 3), "a.gone": (2, "(absent)")}
