"""The figures of a run, drawn at its end into its workdir and for its trackers.

A new one is a function and a line in `FIGURES`, and its name in `figures.AT_THE_END`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from deit_jax import data, figures, storage
from deit_jax.evaluation import rows as rows_lib
from deit_jax.evaluation.rows import Rows
from deit_jax.tracking import series, writers
from deit_jax.train import augmented
from deit_jax.train.experiment import Experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of the augmentation sheet.
_IMAGES, _DRAWS = 6, 7


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run after its last evaluation.

    Attributes:
      experiment: what it was.
      workdir: with its metrics.
      rows: of the last evaluation, for `eval` and `eval_ema`.
    """

    experiment: Experiment
    workdir: storage.Path
    rows: Mapping[str, Rows]

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return rows_lib.class_names(self.experiment.data)

    def better(self) -> tuple[Rows, str]:
        """The rows of the better weights, and the name of the run with theirs."""
        right = {name: (rows.choice == rows.label).mean() for name, rows in self.rows.items()}
        best = max(right, key=right.__getitem__)
        weights = {"eval": "raw weights", "eval_ema": "EMA"}[best]
        return self.rows[best], f"{self.workdir.name}, {weights}" if len(right) > 1 else (
            self.workdir.name
        )


def _curves(run: Finished) -> "Figure":
    return figures.curves({run.workdir.name: series.read_series(run.workdir)})


def _confusion(run: Finished) -> "Figure":
    rows, title = run.better()
    return rows_lib.confusion_figure(rows, run.names, title)


def _worst(run: Finished) -> "Figure":
    rows, title = run.better()
    return rows_lib.worst_figure(rows, run.experiment.data.eval, run.names, title)


def _augmentations(run: Finished) -> "Figure":
    opened, recipe = run.experiment.data, run.experiment.recipe
    config, size = recipe.config, recipe.image_size
    reading = {"seed": config.seed, "canvas": config.input.canvas}
    with data.train_batches(opened.train, _IMAGES, **reading) as batches:
        batch = next(batches)
    drawn = augmented.draws(
        batch, config.augment, size, opened.num_classes, count=_DRAWS, seed=config.seed
    )
    return figures.augmentations(
        [augmented.originals(batch, size), *drawn],
        ["original", *(f"draw {i + 1}" for i in range(_DRAWS))],
        [run.names[label] for label in batch["label"]],
        title=run.workdir.name,
    )


FIGURES: dict[str, Callable[[Finished], "Figure"]] = {
    "curves": _curves,
    "confusion": _confusion,
    "worst": _worst,
    "augmentations": _augmentations,
}


def draw(
    run: Finished, step: int, writer: writers.MetricsWriter, say: Callable[[str], None]
) -> None:
    """Draws the figures that `writer` wants; what cannot be drawn is one line."""
    for name in writer.figures:
        try:
            png = figures.png(FIGURES[name](run))
            storage.write(run.workdir / f"{name}.png", png)
            writer.image(step, f"figures/{name}", png)
        except Exception as error:
            # The run has done its work and saved it: no picture is worth its failure.
            say(f"{name}.png not drawn: {' '.join(str(error).split()) or type(error).__name__}")
