"""A profile of chosen steps: `config.profile='100:104'`, for TensorBoard, XProf or Perfetto."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from deit_jax import storage
from deit_jax.errors import ConfigError


class Span(NamedTuple):
    """Steps to profile, both included, counted from 1 as in the log."""

    first: int
    last: int


def parse_span(text: str, *, total_steps: int) -> Span | None:
    """`'first:last'` as numbers; None for an empty text.

    Raises:
      ConfigError: the text has another form, or the run does not have these steps.
    """
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not colon or not first.strip().isdecimal() or not last.strip().isdecimal():
        raise ConfigError(
            f"config.profile={text!r} is not first:last; '100:104' profiles steps 100 to 104"
        )
    span = Span(int(first), int(last))
    if not 1 <= span.first <= span.last <= total_steps:
        raise ConfigError(
            f"config.profile={text!r} must be within steps 1 to {total_steps}, and the first "
            "cannot be after the last"
        )
    return span


class Profiler:
    """Traces the steps of a span into `folder`; does nothing without one.

    The devices are idle at both ends, so that the trace has these steps and no others. An
    evaluation or a checkpoint between them is in it too. Every process writes its own trace.
    A span that begins before `start_step`, from which this start resumes, is not traced.
    """

    def __init__(
        self,
        span: Span | None,
        *,
        folder: storage.Path,
        start_step: int,
        print_line: Callable[[str], None],
    ) -> None:
        self._span, self._folder, self._print_line = span, folder, print_line
        self._tracing = False
        self._output = contextlib.ExitStack()
        if span and span.first <= start_step:
            self._span = None
            print_line(
                f"no profile: this start resumes after step {start_step:,}, and config.profile "
                f"names steps {span.first}:{span.last}"
            )

    def begins(self, step: int) -> bool:
        """Whether the trace begins before `step`."""
        return self._span is not None and step == self._span.first

    def ends(self, step: int) -> bool:
        """Whether the trace ends after `step`."""
        return self._tracing and self._span is not None and step == self._span.last

    def start(self) -> None:
        """Starts the trace; all earlier steps must be finished."""
        jax.profiler.start_trace(self._output.enter_context(storage.local_output(self._folder)))
        self._tracing = True

    def stop(self) -> None:
        """Writes the trace, if there is one; its steps must be finished."""
        if not self._tracing or self._span is None:
            return
        self._tracing = False
        with self._output:
            jax.profiler.stop_trace()
        self._print_line(
            f"profile of steps {self._span.first}:{self._span.last} in {self._folder}: "
            f"tensorboard --logdir={self._folder} (with xprof installed)"
        )
