"""TensorFlow, imported on first use, silent, and kept off the accelerator."""

import functools
import os
import types


@functools.cache
def tensorflow() -> types.ModuleType:
    """The tensorflow module; an ImportError that says what to install when there is none."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "decoding JPEG and PNG files needs TensorFlow, which cannot be imported "
            f"({error}); `pip install tensorflow-cpu`, or use data of uint8 arrays "
            "(source='digits' or 'arrays'), which needs none"
        ) from error
    try:
        # TensorFlow takes all of the memory of every accelerator that it sees.
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_visible_devices([], "TPU")
    except RuntimeError:
        # Already initialised by the caller's own program, with the devices it chose.
        pass
    return tf
