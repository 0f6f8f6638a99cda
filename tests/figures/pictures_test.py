"""Confusion matrices and sheets of pictures: what is on them, whatever the names are."""

import io

import numpy as np
import pytest

from deit_jax import figures
from deit_jax.figures import style

ODD = ["$\\frac{a$", "猫", "Größe", "a\nb\x1b[31m", "x" * 500, ""]


def texts(figure):
    return [t.get_text() for t in figure.texts] + [
        t.get_text() for axes in figure.axes for t in axes.texts
    ]


def pixels(figure):
    from matplotlib import image

    return np.round(image.imread(io.BytesIO(figures.png(figure)))[..., :3] * 255).astype(int)


def test_few_classes_have_their_numbers():
    counts = np.array([[40, 10], [0, 50]])
    figure = figures.confusion(counts, ["cat", "dog"], title="val")
    assert {"val", "90.0 % of 100 images are right", "40", "10", "50"} <= set(texts(figure))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


@pytest.mark.parametrize("count", [30, 100, 1000])
def test_many_classes_list_what_is_most_often_confused(count):
    counts = 50 * np.eye(count, dtype=int)
    counts[3, 7], counts[5, 1] = 9, 12
    matrix, bars = figures.confusion(counts, [f"name {k}" for k in range(count)]).axes
    pairs = [label.get_text() for label in bars.get_yticklabels()]
    assert pairs == ["name 5 → name 1", "name 3 → name 7"]
    assert [text.get_text() for text in bars.texts] == ["12", "9"]
    shade = matrix.images[0].get_array()
    assert shade.shape[0] <= 250
    scale = len(shade) / count
    assert shade[int(3 * scale), int(7 * scale)] > 0.3, "no cell is lost"
    assert not matrix.texts


def test_confusion_of_nothing_and_of_wrong_shapes():
    figures.png(figures.confusion(np.zeros((3, 3), int), ["a", "b", "c"]))
    with pytest.raises(ValueError, match="names"):
        figures.confusion(np.zeros((3, 3), int), ["a", "b"])


@pytest.mark.filterwarnings("error")
def test_names_are_neither_formulas_nor_control_characters_and_fit():
    count = len(ODD)
    figure = figures.confusion(np.eye(count, dtype=int), ODD, title=ODD[0])
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown[0] == ODD[0] and shown[2] == "Größe" and "\n" not in shown[3]
    assert len(shown[4]) < 30
    if "猫" not in style._code_points():
        assert shown[1] == "class 1"
    for drawn in (
        figure,
        figures.worst(
            [np.zeros((8, 9, 3), np.uint8)] * count, ODD, ODD, [0.1] * count, [0.5] * count
        ),
        figures.augmentations([np.zeros((count, 8, 8, 3), np.uint8)] * 2, ["a", "b"], ODD),
    ):
        assert pixels(drawn).shape[2] == 3
        width = drawn.bbox.x1
        assert all(text.get_window_extent().x1 <= width for text in drawn.texts)


def test_worst_pictures_have_names_and_probabilities():
    images = [np.full((20, 30, 3), 7, np.uint8), np.full((300, 200, 3), 9, np.uint8)]
    figure = figures.worst(
        images, ["cat", "dog"], ["dog", "cat"], [0.004, 0.2], [0.99, 0.75], notes=["a.jpg", "b.jpg"]
    )
    said = texts(figure)
    assert [axes.images[0].get_array().shape for axes in figure.axes] == [
        (20, 30, 3),
        (300, 200, 3),
    ]
    for text in ("cat", "→ dog", " 0.4 %", " 99 %", "→ cat", " 20 %", " 75 %", "a.jpg", "b.jpg"):
        assert text in said
    assert "none is wrong" in texts(figures.worst([], [], [], [], []))
    with pytest.raises(ValueError):
        figures.worst(images, ["cat"], ["dog"], [0.1], [0.9])


def test_sheets_show_every_pixel():
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 256, (3, 2, 100, 110, 3)).astype(np.uint8)
    sheet = pixels(figures.augmentations(columns, ["original", "1", "2"], ["a", "b"], title="t"))
    for column in columns:
        for picture in column:
            corner = (sheet[:-99, :-109] == picture[0, 0]).all(axis=2)
            places = [
                (y, x)
                for y, x in np.argwhere(corner)
                if (sheet[y : y + 100, x : x + 110] == picture).all()
            ]
            assert len(places) == 1
    # Small ones are enlarged.
    small = np.stack([np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)] * 2)
    sheet = pixels(figures.augmentations(small, ["original", "1"], ["a"]))
    assert (sheet == small[0, 0, 1, 1]).all(axis=2).sum() == 2 * 24 * 24


def test_words_from_right_to_left_are_not_written_backwards():
    import matplotlib

    names = ["قط", "שלום"]
    shaped = matplotlib.__version_info__ >= (3, 11)
    assert style.drawable(names) == (names if shaped else ["class 0", "class 1"])
