"""The metrics of a run as series, from its metrics.jsonl."""

import os

from deit_jax import storage
from deit_jax.tracking.jsonl import FILE_NAME, read_jsonl

Series = dict[str, tuple[list[int], list[float]]]


def read_series(workdir: str | os.PathLike | storage.Path) -> Series:
    """Name -> (steps, values) of a workdir or a metrics.jsonl; null becomes NaN.

    Raises:
      FileNotFoundError: there is no metrics.jsonl.
    """
    path = storage.path(workdir)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a run writes it into its workdir")
    series: Series = {}
    for record in read_jsonl(file):
        step = record.pop("step")
        record.pop("time", None)
        for name, value in record.items():
            steps, values = series.setdefault(name, ([], []))
            steps.append(step)
            values.append(float("nan") if value is None else float(value))
    return series
