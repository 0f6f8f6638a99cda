"""The starts of a run, and what of its wall time went into training: goodput.

`<workdir>/starts.jsonl` has a line for each start: the `step` that it resumed after, the `time`
in seconds since 1970, and what it ran on.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from deit_jax import storage
from deit_jax.tracking.jsonl import FILE_NAME, read_jsonl
from deit_jax.tracking.progress import format_duration

STARTS = "starts.jsonl"


class Goodput(NamedTuple):
    """Of all starts together.

    Attributes:
      trained: seconds of training steps that the run still has.
      total: seconds from the first start to the last line of its metrics.
      starts: how many there were.
    """

    trained: float
    total: float
    starts: int

    def __str__(self) -> str:
        starts = f"{self.starts} start{'s' if self.starts != 1 else ''}"
        return (
            f"{self.trained / self.total:.1%} of {format_duration(self.total)} in training steps "
            f"({starts}, {format_duration(self.total - self.trained)} lost)"
        )


def record(workdir: storage.Path, step: int, time: float, facts: Mapping[str, str]) -> None:
    """Adds a start that resumes after `step`."""
    lines = [*read(workdir), {"step": step, "time": time} | dict(facts)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    storage.write(workdir / STARTS, text)


def read(workdir: storage.Path) -> list[dict[str, Any]]:
    """The starts of a run, the first one first; none of a run that recorded none."""
    file = workdir / STARTS
    return list(read_jsonl(file)) if file.is_file() else []


def goodput(workdir: storage.Path) -> Goodput | None:
    """The share of wall time spent training, over all restarts; None where it is not recorded.

    Training time is that of the steps that the run has, each once, at the `train/step_time` of
    its log (the first one of a start at that of the next). All else is lost: starting and
    compiling, evaluation and saving, the time between a stop and the next start, and steps that
    were repeated because they came after the newest checkpoint.
    """
    starts, metrics = read(workdir), workdir / FILE_NAME
    if not starts or not metrics.is_file():
        return None
    lines = [line for line in read_jsonl(metrics) if "time" in line]
    total = max((line["time"] for line in lines), default=0.0) - starts[0]["time"]
    return Goodput(_trained(lines), total, len(starts)) if total > 0 else None


def _trained(lines: Iterable[Mapping[str, Any]]) -> float:
    seconds, counted = 0.0, 0
    for line in lines:
        if (step_time := line.get("train/step_time")) is not None:
            seconds += (line["step"] - counted) * step_time
            counted = line["step"]
    return seconds
