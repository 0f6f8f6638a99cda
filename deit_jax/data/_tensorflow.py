"""TensorFlow, imported on first use, without log output and without the accelerator."""

import functools
import importlib.util
import os
import types

from deit_jax.errors import ConfigError

_MISSING = (
    "decoding JPEG and PNG files needs TensorFlow, which cannot be imported; "
    "`pip install tensorflow-cpu`, or use data of uint8 arrays "
    "(source 'digits' or 'arrays'), which needs none"
)


def require_tensorflow() -> None:
    """Raise ConfigError now, rather than at the first batch, when there is no TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(_MISSING)


@functools.cache
def tensorflow() -> types.ModuleType:
    """The tensorflow module; without it a ConfigError that names what to install."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TensorFlow logs at any level that it uses oneDNN, which decoding does not need.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ConfigError(f"{_MISSING} ({error})") from error
    try:
        # TensorFlow allocates all of the memory of every visible accelerator.
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")
    except RuntimeError:
        # Already initialized by the caller's program, with the devices it chose.
        pass
    return tf
