"""What a data set is, as a figure."""

import numpy as np
import pytest

from deit_jax import figures

PICTURES = [[np.full((20, 30, 3), 99, np.uint8)] * 3, [np.zeros((8, 8, 3), np.uint8)], []]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def draw(**options):
    counts = np.array([[40, 10], [5, 1], [0, 2]])
    return figures.photos(PICTURES, ["cat", "$dog", "none"], counts, **options)


def test_every_class_has_its_numbers_and_photos():
    figure = draw(title="mine", notes=["1 file ignored"])
    said = texts(figure)
    assert {"mine", "cat", "$dog", "none", "40 + 10", "5 + 1", "0 + 2", "1 file ignored"} <= set(
        said
    )
    assert "45 photos for training (dark) and 13 for validation (light)" in said
    assert len(figure.axes) == 4
    # The longest bar is that of the largest class, and each is as long as its photos.
    bars = [artist.get_width() for artist in figure.artists]
    np.testing.assert_allclose(np.array(bars) / bars[0], np.array([40, 10, 5, 1, 0, 2]) / 40)
    assert figures.png(figure) == figures.png(draw(title="mine", notes=["1 file ignored"]))


def test_many_notes_are_counted():
    said = texts(draw(notes=[f"cannot decode {n}" for n in range(1000)]))
    assert "cannot decode 9" in said and "... and 990 more" in said
    assert "cannot decode 10" not in said


def test_one_of_each_for_each_class():
    with pytest.raises(ValueError):
        figures.photos(PICTURES, ["cat"], np.zeros((1, 2), int))
