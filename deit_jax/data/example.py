"""Features of a serialized tf.train.Example, the record of a prepared tfds data set."""

import numpy as np

from deit_jax.data._tensorflow import tensorflow


def image_and_label(payload: bytes, image_key: str, label_key: str) -> tuple[bytes, int]:
    """The encoded image and the label of a record.

    Raises:
        ValueError: a feature is missing or the payload is not an Example.
    """
    features = _features(payload, image_key, label_key)
    image = features[image_key].bytes_list.value
    label = features[label_key].int64_list.value
    if not image or not label:
        raise ValueError(f"feature {image_key!r} or {label_key!r} of the record is empty")
    return image[0], label[0]


def integers(payload: bytes, key: str) -> np.ndarray:
    """All values of an integer feature of a record, int64 [k]; k may be 0.

    Raises:
        ValueError: the feature is missing or the payload is not an Example.
    """
    return np.array(_features(payload, key)[key].int64_list.value, np.int64)


def _features(payload: bytes, *keys: str):
    # The message classes come with TensorFlow.
    example = tensorflow().train.Example
    from google.protobuf.message import DecodeError

    try:
        features = example.FromString(payload).features.feature
    except DecodeError as error:
        raise ValueError("the record is not a tf.train.Example") from error
    # Indexing with a missing key would add an empty feature.
    missing = [key for key in keys if key not in features]
    if missing:
        raise ValueError(f"the record lacks feature {', '.join(map(repr, missing))}")
    return features
