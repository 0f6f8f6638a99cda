"""Figures: curves, confusion matrix, worst pictures, augmentation sheet, attention, in one style.

    curves(runs)                loss, learning rate and accuracy; `tracking.series` reads them
    confusion(counts, names)    a matrix of few classes; of many also the pairs most often confused
    worst(images, ...)          pictures with their true and predicted names and probabilities
    augmentations(columns, ...) a sheet of pictures, pixel for pixel
    photos(pictures, ...)       what a data set is: photos and numbers of each class
    attention(photo, maps, ...) maps over a photo, for blocks, tokens and heads
    speed(points, ...)          published accuracy against measured images/s
    png(figure)  save(figure, path)
                                the bytes of a PNG, and a file (`gs://` too)

Arrays in, a matplotlib `Figure` out: nothing here runs a model, and nothing uses pyplot, so a
notebook's backend stays as it is; there a figure that is the last value of a cell is shown.
`AT_THE_END` are drawn at the end of a run (`train/pictures.py`).

A new figure is a function in a module of its own, decorated with `style.styled`, that takes
colors, fonts and sizes from `style`, and a line below. One that is to be drawn at the end of a
run also needs its name in `AT_THE_END` and a function in `train/pictures.py`.
"""

from deit_jax.figures.attention import attention
from deit_jax.figures.confusion import confusion
from deit_jax.figures.curves import curves
from deit_jax.figures.photos import photos
from deit_jax.figures.pictures import augmentations, worst
from deit_jax.figures.speed import speed
from deit_jax.figures.style import png, save

AT_THE_END = ("curves", "confusion", "worst", "augmentations")

__all__ = ["AT_THE_END"]
__all__ += ["attention", "augmentations", "confusion", "curves", "photos", "png", "save"]
__all__ += ["speed", "worst"]
