"""Where the metrics of a run go: metrics.jsonl always, and the trackers of the `log` section.

To add a tracker: a class like `TensorBoardTracker`, whose keyword-only parameters are
options of the `log` section, and a line in `TRACKERS`.
"""

import contextlib
import io
import logging
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from deit_jax import builders, storage
from deit_jax.errors import ConfigError, unknown
from deit_jax.figures import AT_THE_END
from deit_jax.tracking import live, services
from deit_jax.tracking.jsonl import JsonlTracker

_LOG = logging.getLogger(__name__)


class Tracker(Protocol):
    """A destination for metrics, made as `Tracker(workdir, resume_step, config, **options)`.

    An OSError that it raises is logged and does not end the run. One that keeps in memory what
    it was given also has `sync()`, after which a kill loses nothing; one that shows pictures has
    `image(step, name, png)`.
    """

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """TensorBoard event files in the workdir.

    Written with the protocol buffers of the `tensorboard` package, without TensorFlow, whose
    own writer takes seconds to import and cannot record from which step a run resumes. Here
    TensorBoard knows it, and hides the later steps of the earlier start.
    """

    def __init__(
        self, workdir: storage.Path, resume_step: int = 0, config: Mapping[str, Any] | None = None
    ) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ConfigError(
                f"config.log.trackers=tensorboard needs the tensorboard package ({error}): "
                "pip install tensorboard, or --config.log.trackers= for metrics.jsonl alone"
            ) from error
        # The generated modules have no types.
        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = storage.Appender(folder / _event_file())
        # What makes records of events writes each of them in parts.
        self._buffer = io.BytesIO()
        self._records = RecordWriter(self._buffer)
        self._add(0, file_version="brain.Event:2")
        if resume_step:
            log = self._event.SessionLog
            self._add(resume_step + 1, session_log=log(status=log.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary.Summary
        scalars = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=summary(value=scalars))

    def image(self, step: int, name: str, png: bytes) -> None:
        # Of a PNG the header has the sides.
        width, height = struct.unpack(">II", png[16:24])
        image = self._summary.Summary.Image(
            height=height, width=width, colorspace=4, encoded_image_string=png
        )
        value = self._summary.Summary.Value(tag=name, image=image)
        self._add(step, summary=self._summary.Summary(value=[value]))

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        event = self._event.Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())
        record = self._buffer.getvalue()
        self._buffer.seek(0)
        self._buffer.truncate()
        self._file.write(record)


def _event_file() -> str:
    # TensorBoard reads the files of a folder in the order of their names.
    return f"events.out.tfevents.{time.time_ns():020d}.{socket.gethostname()}.{os.getpid()}"


TRACKERS = {
    "tensorboard": TensorBoardTracker,
    "notebook": live.NotebookTracker,
    "wandb": services.WandbTracker,
    "mlflow": services.MlflowTracker,
    "comet": services.CometTracker,
    "trackio": services.TrackioTracker,
}


@builders.chooses(trackers=TRACKERS)
class MetricsWriter(contextlib.AbstractContextManager):
    """Writes metrics.jsonl, and to every chosen tracker; on processes other than 0, nothing.

    Args:
      resume_step: the step from which a run resumes, 0 for a new one.
      config: JSON values shown as the settings of the run.
      trackers: names in `TRACKERS`; the other options are theirs.
      figures: names in `figures.AT_THE_END`, to be drawn at the end.

    Raises:
      ConfigError: an unknown tracker or figure, a tracker whose package is missing, or files that
        cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike | storage.Path,
        resume_step: int = 0,
        config: Mapping[str, Any] | None = None,
        *,
        trackers: tuple[str, ...] = ("tensorboard",),
        figures: tuple[str, ...] = AT_THE_END,
        **options: Any,
    ) -> None:
        self.figures = figures
        for name in figures:
            if name not in AT_THE_END:
                raise unknown("figure", name, AT_THE_END)
        classes = [builders.choose(TRACKERS, name, "tracker") for name in trackers]
        self._trackers: list[Tracker] = []
        if jax.process_index() == 0:
            folder = storage.path(workdir)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for tracker in [JsonlTracker, *classes]:
                    make = builders.bind(tracker, options)
                    self._trackers.append(make(folder, resume_step, config))
            except OSError as error:
                raise ConfigError(
                    f"metrics cannot be written in {folder}: {error.filename}: {error.strerror}; "
                    "move it away or choose another --workdir"
                ) from error

    def __exit__(self, *_exc: Any) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars of one step; numbers, numpy or jax scalars (jax scalars are waited for)."""
        if not self._trackers:
            return
        scalars = jax.device_get(list(values.values()))
        plain = {name: float(value) for name, value in zip(values, scalars, strict=True)}
        self._each("write", int(step), plain)

    def image(self, step: int, name: str, png: bytes) -> None:
        """A picture, for the trackers that show some."""
        self._each("image", step, name, png)

    def sync(self) -> None:
        """Returns once what was written is in the workdir, where that is a bucket."""
        self._each("sync")

    def close(self) -> None:
        """Flushes and closes everything."""
        self._each("close")
        self._trackers = []

    def _each(self, method: str, *args: Any) -> None:
        for tracker in self._trackers:
            try:
                getattr(tracker, method, lambda *_: None)(*args)
            except OSError as error:
                # A full disk must not end a run that can still compute and save elsewhere.
                which = f"metrics of step {args[0]}" if args else "metrics"
                _LOG.error("%s: %s not written: %s", type(tracker).__name__, which, error)
