"""What a run says of its progress at each log interval: speed, waiting for data, time left."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping


class Progress:
    """Measures speed, share of time spent waiting for data, and remaining time.

    Compilation, evaluation and checkpoints run inside `paused`, so that they count in none
    of the three.

    Args:
      total_steps: length of the run.
      steps_per_epoch: for the epoch in the line.
      batch_size: rows of the global batch.
      start_step: step from which the run starts or resumes.
      ideal_step_seconds: duration of a step at the hardware's peak; None if unknown, then
        there is no MFU.
      clock: seconds; for tests.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        start_step: int = 0,
        ideal_step_seconds: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._ideal_step_s = ideal_step_seconds
        self._clock = clock
        self._step = start_step
        self._begun = clock()
        self._excluded_s = 0.0
        self._excluded_steps = 0
        self._waited_s = 0.0
        # Seconds per step, averaged over the run with recent intervals weighing most.
        self._step_s: float | None = None

    @contextlib.contextmanager
    def paused(self, *, steps: int = 0) -> Iterator[None]:
        """Time inside is not training time; `steps` done inside are not measured."""
        begun = self._clock()
        try:
            yield
        finally:
            self._excluded_s += self._clock() - begun
            self._excluded_steps += steps

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around fetching the next batch. Must not be nested in `paused`."""
        begun = self._clock()
        try:
            yield
        finally:
            self._waited_s += self._clock() - begun

    def report(
        self, step: int, values: Mapping[str, float], *, notes: Iterable[str] = ()
    ) -> tuple[str, dict[str, float]]:
        """Ends an interval with `step`; the line has `values`, such as the loss, and the notes.

        Returns:
          The line, and of the interval `images_per_second`, `step_time` (s), `data_wait` (share
          of time, 0..1), `eta` (s), and `mfu` (0..1) where the hardware's peak is known; `{}`
          for an interval of compilation alone.
        """
        now = self._clock()
        seconds = now - self._begun - self._excluded_s
        steps = step - self._step - self._excluded_steps
        speed: dict[str, float] = {}
        if steps > 0 and seconds > 0:
            step_s = seconds / steps
            # An interval weighs at least 1/10, so that the ETA follows a lasting change.
            old = self._step_s
            self._step_s = step_s if old is None else old + 0.1 * (step_s - old)
            speed = {
                "images_per_second": self._batch_size / step_s,
                "step_time": step_s,
                "data_wait": min(1.0, self._waited_s / seconds),
                "eta": (self._total_steps - step) * self._step_s,
            }
            if self._ideal_step_s is not None:
                speed["mfu"] = self._ideal_step_s / step_s
        self._begun, self._step = now, step
        self._excluded_s, self._excluded_steps, self._waited_s = 0.0, 0, 0.0
        return "  ".join([*self._parts(step, values, speed), *notes]), speed

    def _parts(
        self, step: int, values: Mapping[str, float], speed: Mapping[str, float]
    ) -> list[str]:
        width = len(str(self._total_steps))
        epochs = self._total_steps / self._steps_per_epoch
        parts = [
            f"step {step:>{width}}/{self._total_steps}",
            f"epoch {step / self._steps_per_epoch:.2f}/{epochs:.4g}",
            *(f"{name} {value:.4g}" for name, value in values.items()),
        ]
        if speed:
            rate = speed["images_per_second"]
            parts += [
                f"{rate:,.{0 if rate >= 10 else 1}f} images/s",
                *([f"MFU {speed['mfu']:.1%}"] if "mfu" in speed else []),
                f"data wait {speed['data_wait']:.0%}",
                f"ETA {format_duration(speed['eta'])}",
            ]
        return parts


def format_duration(seconds: float) -> str:
    """`42s`, `3m20s`, `5h07m`, `2d03h`: two units, rounded to the smaller."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    units = ((days, f"d{h:02d}h"), (hours, f"h{m:02d}m"), (minutes, f"m{s:02d}s"))
    return next((f"{count}{rest}" for count, rest in units if count), f"{s}s")
