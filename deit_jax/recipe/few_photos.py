"""Fewer photos than a batch: the batch and the evaluation are made smaller, and it is said."""

import math
from typing import NamedTuple

import ml_collections


class Fit(NamedTuple):
    """How a config is changed to fit its data.

    Attributes:
      config: with smaller batches; the given one where they fit.
      times: how often each training image counts, so that there is one for each device.
      notes: what was changed and why, a line each.
    """

    config: ml_collections.ConfigDict
    times: int
    notes: tuple[str, ...]


def fit(
    config: ml_collections.ConfigDict, *, train: int, evaluation: int | None, device_count: int
) -> Fit:
    """Lowers batch sizes that the data cannot fill.

    The training batch becomes the largest that is not above the number of images, is even, as
    mixing needs, and divides among the devices and micro-batches; the learning rate follows
    where the recipe scales it by the batch. Fewer images than devices are counted several times.

    Args:
      train, evaluation: numbers of images; None where it is not known.
    """
    config = config.copy_and_resolve_references()
    notes = []
    # As `data.order.steps_per_epoch` does.
    usable = lambda n: n // 256 * 256 if config.input.repeats > 1 and n >= 256 else n
    times, batch = 1, config.train.batch_size
    if 0 < usable(train) < batch:
        # An odd number of micro-batches, or one beyond any batch, is refused later on.
        micro_batches = min(max(config.step.accum_steps, 1), batch)
        smallest = math.lcm(2, device_count * micro_batches)
        while usable(train * times) < smallest:
            times += 1
        config.train.batch_size = usable(train * times) // smallest * smallest
        notes.append(
            f"train.batch_size is {config.train.batch_size}, not {batch}: there are "
            f"{train:,} training images"
            + (f", each {times} times in an epoch, for {device_count} devices" * (times > 1))
        )
    rows = config.eval.batch_size
    if evaluation and evaluation < rows:
        fewer = -(-evaluation // device_count) * device_count
        if fewer < rows:
            config.eval.batch_size = fewer
            notes.append(f"eval.batch_size is {fewer}, not {rows}: there are {evaluation:,} images")
    return Fit(config, times, tuple(notes))
