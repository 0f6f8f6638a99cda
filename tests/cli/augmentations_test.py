"""`deit-jax augmentations`: the sheets are written and contain what they should."""

import numpy as np
import pytest

from deit_jax import cli

QUICKSTART = "--config=configs/quickstart.py:student"


def read_png(path):
    from matplotlib import image

    return image.imread(path)[..., :3]


def test_sheets_of_the_recipe_and_of_an_operation(tmp_path, capsys):
    pytest.importorskip("sklearn")
    output = tmp_path / "sheets" / "digits.png"
    arguments = [QUICKSTART, "--images=4", "--draws=3", f"--output={output}"]
    assert cli.main(["augmentations", *arguments, "--operation", "Invert"]) == 0
    assert capsys.readouterr().out.count("4 images, 3 draws") == 2
    sheet, inverted = read_png(output), read_png(output.with_stem("digits_Invert"))
    # Tiles of 16 pixels are enlarged to 96; the margin at the right is 24.
    xs = [sheet.shape[1] - 24 - 96 - 102 * back for back in (2, 1, 0)]
    xs = [xs[0] - 102 - 18, *xs]
    top = sheet.shape[0] - 24 - 3 * 102 - 96
    tiles = [inverted[top : top + 96, x : x + 96] for x in xs]
    np.testing.assert_allclose(tiles[1], 1 - tiles[0], atol=1e-6)
    np.testing.assert_array_equal(tiles[1], tiles[3])
    first, second = (sheet[top : top + 96, x : x + 96] for x in xs[:2])
    np.testing.assert_array_equal(first, tiles[0])
    assert (second != first).any()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--operation", "Rotat"], "Rotate"),
        (["--images=3"], "even"),
        (["--config.augment.mixupp=0"], "mixup"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys, tmp_path):
    pytest.importorskip("sklearn")
    output = f"--output={tmp_path / 'x.png'}"
    assert cli.main(["augmentations", QUICKSTART, output, *arguments]) == 2
    assert message in capsys.readouterr().err
