"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and W&B when asked.

`<workdir>/metrics.jsonl` holds one JSON object a line, `step` first:
`{"step": 100, "train/loss": 6.9, ...}`. NaN and infinities are written as null, since JSON
has neither; the name is then present without a value. A run that goes on from step k
drops what an earlier part wrote after k, so no step appears twice.
"""

import json
import logging
import math
import os
import pathlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax

from deit_jax.errors import ConfigError

_LOG = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class Writer(Protocol):
    """What receives numbers. All values are Python floats by then."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, values: Mapping[str, str]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Writes to every destination asked for; on processes other than 0, to none.

    Args:
      workdir: folder of the run.
      resume_step: the step a run goes on from, 0 for a new one: what was written for later
        steps is dropped.
      tensorboard: events in `<workdir>/tensorboard`.
      wandb_project: also log to this Weights & Biases project (needs `wandb`).
      config: JSON values shown as the run's settings in W&B.

    Raises:
      ConfigError: a destination's package is missing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int = 0,
        tensorboard: bool = True,
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._writers: list[Writer] = []
        if jax.process_index() != 0:
            return
        folder = pathlib.Path(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        self._writers.append(JsonlWriter(folder / FILE_NAME, resume_step=resume_step))
        if tensorboard:
            self._writers.append(TensorBoardWriter(folder / "tensorboard", resume_step=resume_step))
        if wandb_project:
            self._writers.append(
                WandbWriter(folder, project=wandb_project, config=dict(config or {}))
            )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars of one step; numbers, numpy or jax scalars (jax scalars are waited for)."""
        if not self._writers:
            return
        read = jax.device_get(list(values.values()))
        plain = {name: float(value) for name, value in zip(values, read, strict=True)}
        self._each("scalars", int(step), plain)

    def write_text(self, step: int, values: Mapping[str, str]) -> None:
        """Text such as the config; shown by TensorBoard as Markdown, not in metrics.jsonl."""
        self._each("text", int(step), dict(values))

    def close(self) -> None:
        """Flushes and closes everything."""
        self._each("close")
        self._writers = []

    def _each(self, method: str, *args: Any) -> None:
        for writer in self._writers:
            try:
                getattr(writer, method)(*args)
            except OSError as error:
                # A full disk must not end a run that can still compute and save elsewhere.
                _LOG.error("%s: metrics not written: %s", type(writer).__name__, error)


class JsonlWriter:
    """Appends whole lines with one system call each: a kill leaves at most the last one short."""

    def __init__(self, file: pathlib.Path, *, resume_step: int = 0) -> None:
        if file.exists():
            _drop_after(file, resume_step)
        self._fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        record = {"step": step} | {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        begin = os.fstat(self._fd).st_size
        if os.write(self._fd, line) < len(line):
            # A full disk takes part of a line; the next one must not be glued to it.
            os.ftruncate(self._fd, begin)
            raise OSError(f"disk full at step {step}")

    def text(self, step: int, values: Mapping[str, str]) -> None:
        """Nothing: the file holds numbers only."""

    def close(self) -> None:
        os.close(self._fd)


def read_jsonl(file: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; a broken one is skipped with a warning that names it.

    Only the last line of a killed run can be short; others mean damage, which is no reason
    to refuse the rest or to keep a run from going on.
    """
    lines = pathlib.Path(file).read_bytes().split(b"\n")
    whole, rest = lines[:-1], lines[-1]
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


def _drop_after(file: pathlib.Path, step: int) -> None:
    """Keeps the lines up to `step`; the file is replaced at once, or left as it is."""
    kept = [record for record in read_jsonl(file) if record["step"] <= step]
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(temporary, file)


class TensorBoardWriter:
    """Event files through the protocol buffers of the `tensorboard` package, without TensorFlow.

    TensorFlow's own writer takes seconds to import and cannot say from which step a run
    went on; here TensorBoard is told, and hides what the lost part wrote after it.
    """

    def __init__(self, folder: pathlib.Path, *, resume_step: int = 0) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(
                f"config.log.tensorboard needs the tensorboard package ({error}): "
                "pip install tensorboard, or switch it off; metrics.jsonl is written anyway"
            ) from error
        self._event, self._summary = event_pb2, summary_pb2
        self._tensor, self._types = tensor_pb2, types_pb2
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(open(folder / name, "wb"))
        self._add(0, file_version="brain.Event:2")
        if resume_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(resume_step + 1, session_log=start)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._add(
            step,
            summary=self._summary.Summary(
                value=[
                    self._summary.Summary.Value(tag=name, simple_value=value)
                    for name, value in values.items()
                ]
            ),
        )

    def text(self, step: int, values: Mapping[str, str]) -> None:
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        self._add(
            step,
            summary=self._summary.Summary(
                value=[
                    self._summary.Summary.Value(
                        tag=name,
                        metadata=self._summary.SummaryMetadata(plugin_data=plugin),
                        tensor=self._tensor.TensorProto(
                            dtype=self._types.DT_STRING, string_val=[text.encode()]
                        ),
                    )
                    for name, text in values.items()
                ]
            ),
        )

    def close(self) -> None:
        self._records.close()

    def _add(self, step: int, **what: Any) -> None:
        event = self._event.Event(wall_time=time.time(), step=step, **what)
        self._records.write(event.SerializeToString())
        self._records.flush()


class WandbWriter:
    """Weights & Biases; one W&B run for one workdir, gone on with when the run is."""

    def __init__(self, folder: pathlib.Path, *, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                "config.log.wandb_project needs the wandb package: pip install wandb"
            ) from error
        known = folder / "wandb_id"
        run_id = known.read_text().strip() if known.exists() else None
        self._run = wandb.init(
            project=project, config=dict(config), dir=str(folder), id=run_id, resume="allow"
        )
        known.write_text(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def text(self, step: int, values: Mapping[str, str]) -> None:
        self._run.summary.update(dict(values))

    def close(self) -> None:
        self._run.finish()
