"""The metrics of a run in its workdir.

`<workdir>/metrics.jsonl` has one JSON object per line, `step` first, then `time`, when it was
written, in seconds since 1970: `{"step": 100, "time": 1.8e9, "train/loss": 6.9, ...}`. NaN and
infinities are written as null, since JSON has neither; the name is then present without a
value. A run that resumes from step k drops what was written for later steps, so no step
appears twice.
"""

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from deit_jax import storage

_LOG = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class JsonlTracker:
    """Appends to metrics.jsonl, see `storage.Appender`."""

    def __init__(
        self, workdir: storage.Path, resume_step: int = 0, config: Mapping[str, Any] | None = None
    ) -> None:
        file = workdir / FILE_NAME
        if file.exists():
            # Lines of later steps go; the file is replaced in one operation.
            records = [record for record in read_jsonl(file) if record["step"] <= resume_step]
            storage.write(file, "".join(json.dumps(record) + "\n" for record in records))
        self._file = storage.Appender(file)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: x if math.isfinite(x) else None for name, x in values.items()}
        record = {"step": step, "time": round(time.time(), 3)} | finite
        self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def read_jsonl(file: str | os.PathLike | storage.Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; a broken one is skipped with a warning that names it.

    Only the last line of a killed run can be short; other broken lines mean damage, which is
    no reason to refuse the rest or to keep a run from resuming.
    """
    *whole, rest = storage.path(file).read_bytes().split(b"\n")
    if rest:
        _LOG.warning("%s: the last line is cut and was skipped", file)
    for number, line in enumerate(whole, start=1):
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError):
            _LOG.warning("%s: line %d is broken and was skipped: %r", file, number, line[:80])
            continue
        yield record
