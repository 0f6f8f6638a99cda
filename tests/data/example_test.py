"""Features of tf.train.Example records, whole and damaged."""

import numpy as np
import pytest

from deit_jax.data import example


def serialize(**values):
    import tensorflow as tf

    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value))

    features = tf.train.Features(feature={key: feature(value) for key, value in values.items()})
    return tf.train.Example(features=features).SerializeToString()


def test_image_and_label():
    payload = serialize(label=[7, 8], image=b"\xff\xd8jpeg", file_name=b"a.jpg")
    assert example.image_and_label(payload, "image", "label") == (b"\xff\xd8jpeg", 7)


@pytest.mark.parametrize("values", [[], [7], [3, 300, 999], [-1, 2**40]])
def test_integer_lists(values):
    import tensorflow as tf

    payload = serialize(a=values)
    integers = example.integers(payload, "a")
    assert integers.dtype == np.int64 and integers.tolist() == values
    # An empty list may also be written as a feature without content.
    features = tf.train.Features(feature={"empty": tf.train.Feature()})
    empty = tf.train.Example(features=features).SerializeToString()
    assert example.integers(empty, "empty").tolist() == []
    with pytest.raises(ValueError, match="lacks feature 'b'"):
        example.integers(payload, "b")


def test_a_cut_record_is_an_error_wherever_it_is_cut():
    payload = serialize(image=b"jpeg" * 40, label=[300])
    for end in range(len(payload)):
        with pytest.raises(ValueError, match="record"):
            example.image_and_label(payload[:end], "image", "label")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": b"jpeg"}, "lacks feature 'label'"),
        ({"label": [1]}, "lacks feature 'image'"),
        ({"image": b"jpeg", "label": []}, "is empty"),
        ({"image": [3], "label": [1]}, "is empty"),
    ],
)
def test_a_record_without_image_or_label_is_an_error(values, message):
    with pytest.raises(ValueError, match=message):
        example.image_and_label(serialize(**values), "image", "label")
    with pytest.raises(ValueError, match="not a tf.train.Example"):
        example.image_and_label(b"\xff" * 9, "image", "label")
