"""The progress line, and what does not count as speed."""

import pytest

from deit_jax.tracking.progress import Progress, format_duration


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, **options):
    options = {"total_steps": 1000, "steps_per_epoch": 100, "batch_size": 64} | options
    return Progress(clock=clock, **options)


def test_the_line(clock):
    meter = make(clock)
    with meter.waiting():
        clock.now += 2.0
    clock.now += 8.0
    line, speed = meter.report(50, {"loss": 6.91234})
    assert line == (
        "step   50/1000  epoch 0.50/10  loss 6.912  320 images/s  data wait 20%  ETA 3m10s"
    )
    assert speed == pytest.approx(
        {"images_per_second": 320.0, "step_time": 0.2, "data_wait": 0.2, "eta": 190.0}
    )


def test_compilation_evaluation_and_checkpoints_do_not_count(clock):
    meter = make(clock)
    with meter.paused(steps=1):
        clock.now += 100.0
    clock.now += 9 * 0.5
    with meter.paused():
        clock.now += 50.0
    _, speed = meter.report(10, {})
    assert speed["step_time"] == pytest.approx(0.5)
    assert speed["eta"] == pytest.approx(990 * 0.5)


def test_an_interval_of_compilation_alone_claims_no_speed(clock):
    meter = make(clock)
    with meter.paused(steps=1):
        clock.now += 30.0
    line = "step    1/1000  epoch 0.01/10  loss 1"
    assert meter.report(1, {"loss": 1.0}) == (line, {})


def test_intervals_are_measured_each_on_its_own(clock):
    meter = make(clock, start_step=500)
    with meter.waiting():
        clock.now += 10.0
    meter.report(510, {})
    clock.now += 5.0
    _, speed = meter.report(520, {})
    assert speed["data_wait"] == 0.0
    assert speed["step_time"] == pytest.approx(0.5)
    # The ETA moves towards the new speed, and does not jump.
    assert 480 * 0.5 < speed["eta"] < 480 * 1.0


def test_share_of_the_peak_and_notes(clock):
    meter = make(clock, ideal_step_seconds=0.05)
    clock.now += 10.0
    line, speed = meter.report(50, {"loss": 1.0}, notes=["memory 3.2 GiB"])
    assert speed["mfu"] == pytest.approx(0.25)
    assert "320 images/s  MFU 25.0%  data wait 0%" in line
    assert line.endswith("ETA 3m10s  memory 3.2 GiB")


def test_slow_machines_see_a_digit_more(clock):
    meter = make(clock)
    clock.now += 2500.0
    line, _ = meter.report(50, {"loss": 1.0})
    assert "loss 1  1.3 images/s" in line


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0s"), (-3, "0s"), (59.6, "1m00s"), (200, "3m20s"), (18420, "5h07m"), (183600, "2d03h")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
