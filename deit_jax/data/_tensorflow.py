"""TensorFlow, imported on first use, without log output and without the accelerator."""

import contextlib
import functools
import importlib.util
import os
import re
import tempfile
import types
from collections.abc import Iterator

from absl import logging as absl_logging

from deit_jax.errors import ConfigError

_MISSING = (
    "photos and prepared data sets need {}, which cannot be imported: `pip install "
    "'deit_jax[data]'`; data of uint8 arrays (source 'digits' or 'arrays') needs none"
)

# `I0000 00:00:1795298260.942085   21231 cudart_stub.cc:31] Could not find cuda drivers ...`, and
# `2026-11-22 01:37:16.300244: E external/local_xla/...] failed call to cuInit ...` before 2.21.
_LOG_LINE = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d [\d:.]+: [IWE] |WARNING: All log messages before absl"
)


def require_tensorflow(*others: str) -> None:
    """Raise ConfigError now, rather than at the first batch, without TensorFlow or `others`."""
    # Found by its module: any distribution of TensorFlow will do.
    for name in ("tensorflow", *others):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(_MISSING.format(name))


@functools.cache
def tensorflow() -> types.ModuleType:
    """The tensorflow module; without one that works a ConfigError that says what to install."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow logs at any level that it uses oneDNN, which decoding does not need.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    with _without_log_lines():
        try:
            import tensorflow as tf
        except Exception as error:  # noqa: BLE001 - a build for another NumPy or protobuf raises anything
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{_MISSING.format('tensorflow')} ({reason})") from error
        try:
            # TensorFlow allocates all of the memory of every visible accelerator.
            tf.config.set_visible_devices([], "GPU")
            tf.config.set_visible_devices([], "TPU")
        except RuntimeError:
            # Already initialized by the caller's program, with the devices it chose.
            pass
    return tf


@functools.cache
def tensorflow_datasets() -> types.ModuleType:
    """The tensorflow_datasets module; where it does not work a ConfigError with the reason.

    It logs what goes wrong while it is imported, such as a protobuf that is too old for it, and
    is then a module without contents.
    """
    logged = []
    logger = absl_logging.get_absl_logger()
    # Appends, and keeps the record from being written.
    logger.addFilter(logged.append)  # pyright: ignore[reportArgumentType]
    try:
        import tensorflow_datasets as tfds
    except Exception as error:  # noqa: BLE001 - as TensorFlow
        raise _unusable(error) from error
    finally:
        logger.removeFilter(logged.append)  # pyright: ignore[reportArgumentType]
    if not hasattr(tfds, "core"):
        raise _unusable(next((r.exc_info[1] for r in logged if r.exc_info), "it is empty"))
    return tfds


def _unusable(error: object) -> ConfigError:
    reason = " ".join(str(error).split())[:240]
    old = "; with protobuf 5: `pip install 'tensorflow-metadata<1.18'`"
    hint = old if "protobuf" in reason.lower() else ""
    return ConfigError(f"tensorflow_datasets cannot be imported ({reason}){hint}")


@contextlib.contextmanager
def _without_log_lines() -> Iterator[None]:
    """Drops the log lines that C++ writes to stderr in its body; other lines come at its end.

    TensorFlow with CUDA logs that there is no GPU or no driver at any TF_CPP_MIN_LOG_LEVEL.
    """
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            for line in kept:
                if not _LOG_LINE.match(line):
                    os.write(2, line)
