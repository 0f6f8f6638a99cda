"""Odd values of every option of every section: refused in one line that names it, or meant.

The options are found in the tables and signatures, so a new one is tried too, and what it accepts
must be listed here, with the reason.
"""

import types
import typing
from collections.abc import Callable
from typing import Any

import ml_collections
import tiny_runs
from data import formats_test

from deit_jax import builders
from deit_jax import data as data_lib
from deit_jax.errors import ConfigError, Problems, printable, screen
from deit_jax.recipe import checks, few_photos, summary
from deit_jax.recipe.recipe import make_recipe
from deit_jax.train import experiment, schema

ESCAPE, LONG, LARGE = "\x1b[31m", "a" * 5000, str(10**18)
TEXTS = ("", ESCAPE, LONG, "[1, 2]", "()", "{}")
NUMBERS = ("nan", "inf", "-inf", "1e999", "1" + "0" * 400, "-1", "-0.5", "0", LARGE, "1e30")
QUICK = (ESCAPE, "-1", LARGE)
ZERO_IS_OFF = """
    augment.color_jitter augment.cutmix augment.erasing_prob augment.hflip augment.mix_prob
    augment.mixup augment.pca_std augment.smoothing augment.switch_prob augment.vflip
    checkpoint.keep_best input.max_corrupt_share input.prefetch model.drop_path_rate
    model.dropout_rate model.layer_scale_init optim.weight_decay schedule.base_lr schedule.min_lr
    schedule.warmup_epochs schedule.warmup_lr step.ema_decay step.max_overflows
    train.checkpoint_every_epochs train.checkpoint_every_steps train.eval_every_epochs
    train.eval_every_steps train.total_epochs loss.alpha optim.beta1 optim.beta2 optim.eps
    optim.momentum loss.gamma
"""
ACCEPTED = {
    "0": {
        *ZERO_IS_OFF.split(),
        "seed",
        "data.split_seed",
        "augment.mean",  # of levels that are 0 to 1 already
    },
    "-1": {
        "mesh.data",  # all devices that fsdp leaves
        "data.split_seed",  # a number like any other
    },
    LARGE: {
        # Beyond the length of the run: never, or only at its end.
        "train.checkpoint_every_epochs",
        "train.checkpoint_every_steps",
        "train.eval_every_epochs",
        "train.eval_every_steps",
        "train.log_every_steps",
        "train.stop_at_step",
        # All of them.
        "augment.mix_group_limit",
        "checkpoint.keep_best",
        "checkpoint.keep_every_steps",
        "checkpoint.keep_latest",
        "checkpoint.max_failures",
        "data.window_shards",
        "input.max_pixels",
        # Lowered to the number of images, with a note.
        "eval.batch_size",
        "train.batch_size",
        # It diverges, which ends the run with a message.
        "schedule.base_lr",
        "schedule.min_lr",
        "schedule.warmup_lr",
        # Gradients of any norm.
        "optim.clip_norm",
        "optim.lamb_clip_norm",
        "data.split_seed",
        "train.total_epochs",  # `total_steps` counts instead
    },
}
ACCEPTED["1e30"] = ACCEPTED[LARGE]
ACCEPTED["[1, 2]"] = {"augment.ratio"}


def kinds(annotation: Any) -> list[tuple[Any, tuple]]:
    """(type, types of its items) of each alternative."""
    alternatives = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else ()
    return [(kind, typing.get_args(kind)) for kind in alternatives or (annotation,)]


def values_of(annotation: Any) -> list[str]:
    """Texts for an option of this type, `-1,-1,-1` among them for one of three numbers."""
    found = [*TEXTS, *NUMBERS]
    for _, items in kinds(annotation):
        if items and items[0] in (int, float):
            count = 2 if items[-1] is ... else len(items)
            found += [",".join([number] * count) for number in NUMBERS]
    return found


def is_free(annotation: Any, text: str) -> bool:
    """Whether any such text is a value: of a name, a path, a regular expression, or a switch."""
    names = any(kind is str or items[:1] == (str,) for kind, items in kinds(annotation))
    return names or (annotation is bool and text == "0")


class Base:
    """A resolved config, whose options are given other values one at a time."""

    def __init__(self, spec: str, *overrides: str):
        self._values = tiny_runs.tiny(spec, *overrides).to_dict()
        self._opened = data_lib.open_data(**self._values["data"])

    def options(self) -> dict[str, builders.Option]:
        found = dict(schema.TOP)
        for name, section in schema.SECTIONS.items():
            known = builders.options(section, self._values[name])
            found |= {f"{name}.{key}": option for key, option in known.items()}
        return found

    def place_of(self, path: str) -> str:
        """An option and what it is beside: where only numbers differ, the answers are alike."""
        section, dot, _ = path.partition(".")
        beside = self._values[section].items() if dot else ()
        kind = lambda v: v if v is None or isinstance(v, str | bool) else type(v).__name__
        return f"{path} {sorted((key, str(kind(value))) for key, value in beside)}"

    def make(self, override: str) -> None:
        """What `deit-jax explain` does, which checks whatever needs no weights and no devices."""
        config = schema.resolve(ml_collections.ConfigDict(self._values), [override])
        opened = self._opened
        if override.startswith("data."):
            opened = data_lib.open_data(**config.data)
        sizes = {"train": len(opened.train), "evaluation": len(opened.eval)}
        fit = few_photos.fit(config, **sizes, device_count=1)
        problems = Problems(fit.config)
        sizes = {"records": sizes["train"] * fit.times, "num_classes": opened.num_classes}
        recipe: Any = make_recipe(fit.config, **sizes, problems=problems)
        experiment.check_sections(fit.config, recipe, problems)
        problems.raise_any()
        summary.describe(recipe)
        checks.recipe_warnings(recipe)


def outcome(base: Base, path: str, text: str) -> str | None:
    """What is wrong with the answer to `path=text`; None for nothing, 'accepted' if it is."""
    try:
        base.make(f"{path}={text}")
        return "accepted"
    except (ConfigError, OSError) as error:
        message = screen(error)
    except Exception as error:  # noqa: BLE001 - a traceback for the user
        return f"{type(error).__name__}: {error}"
    named = path.rpartition(".")[2] in message or printable(text[:40]) in message
    return None if named and message.isprintable() else f"message {message[:300]!r}"


def wrong(base: Base, done: set[str], values: Callable = values_of, of: str = "") -> list[str]:
    """Each option of `base` with each odd value that is answered wrongly; `of`: a section."""
    found = []
    for path, option in sorted(base.options().items()):
        if base.place_of(path) in done or not path.startswith(of):
            continue
        done.add(base.place_of(path))
        for text in values(option.annotation):
            result = outcome(base, path, text)
            accepted = result == "accepted"
            if accepted and is_free(option.annotation, text):
                continue
            if result and not (
                accepted
                and path in ACCEPTED.get(text, set()) | ACCEPTED.get(text.split(",")[0], set())
            ):
                found.append(f"{path}={text[:40]!r}: {result}")
    return found


DIGITS = tiny_runs.DIGITS


def test_odd_values_are_refused_or_meant():
    assert wrong(Base("deit.py:ti", *DIGITS), set(), lambda _: QUICK) == []


def test_of_a_folder_of_photos(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = formats_test.as_folder(formats_test.small_photos(), tmp_path / "photos")
    overrides = [f"data.{key}={value}" for key, value in options.items()]
    assert wrong(Base("quickstart.py:plain", *overrides), set(), of="data.") == []
