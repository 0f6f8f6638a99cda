"""The most likely classes of single image files."""

import math
import os
from collections.abc import Callable

import jax
import numpy as np

from deit_jax import models, storage
from deit_jax.data import imagenet_classes
from deit_jax.data.decode import decode_image
from deit_jax.data.photo_files import read_file
from deit_jax.data.resize import evaluation_square
from deit_jax.data.source import CorruptImage
from deit_jax.errors import ConfigError, printable
from deit_jax.evaluation.evaluate import Evaluation
from deit_jax.evaluation.evaluator import square_side
from deit_jax.evaluation.heads import head_outputs
from deit_jax.pretrained import CheckpointInfo, LoadedCheckpoint


def readable_names(info: CheckpointInfo) -> list[str]:
    """K names: the checkpoint's own, synsets in plain English; numbers where it has none.

    1,000 classes without names are taken to be ImageNet-1k in its usual order.
    """
    if info.class_names:
        return [printable(imagenet_classes.class_name(name)) for name in info.class_names]
    if info.num_classes == len(imagenet_classes.class_names()):
        return list(imagenet_classes.class_names())
    return [f"class {number}" for number in range(info.num_classes)]


def make_classifier(
    loaded: LoadedCheckpoint, *, crop_ratio: float | None = None
) -> Callable[[storage.Path], dict[str, np.ndarray]]:
    """`classify(path) -> probabilities f32 [K]` by name of `heads.HEADS`.

    The image is turned as its EXIF orientation says and prepared as in evaluation; `crop_ratio`
    defaults to the checkpoint's. `classify` raises ConfigError for a file that cannot be read or
    decoded.
    """
    model = loaded.create_model()
    image_size = square_side(model)
    evaluation = Evaluation(image_size, crop_ratio=crop_ratio or loaded.image["crop_ratio"])
    transform = evaluation.make_transform(loaded.mean, loaded.std)

    @jax.jit
    def forward(variables, batch):
        return head_outputs(models.apply(model, variables, transform(batch)))

    variables = jax.device_put(loaded.variables)

    def classify(path: storage.Path) -> dict[str, np.ndarray]:
        outputs = jax.device_get(forward(variables, read_photo(path, evaluation)))
        return {head: np.exp(scores[0]) for head, scores in outputs.items()}

    return classify


def read_photo(
    path: str | os.PathLike | storage.Path, evaluation: Evaluation
) -> dict[str, np.ndarray]:
    """A file as a batch of one for `evaluation.make_transform`, turned as its EXIF says.

    Raises:
      ConfigError: it cannot be read or decoded.
    """
    try:
        pixels = decode_image(read_file(path), exif_orientation=True)
    except CorruptImage as error:
        raise ConfigError(f"{path}: {error}") from None
    if max(pixels.shape[:2]) > evaluation.canvas:
        short = int(evaluation.image_size / evaluation.crop_ratio)
        pixels = evaluation_square(pixels, short=short, image_size=evaluation.image_size)
    # Whole multiples of 256, so that photos of like size share one compiled program.
    side = 256 * math.ceil(max(pixels.shape[:2]) / 256)
    canvas = np.zeros((1, side, side, 3), np.uint8)
    canvas[0, : pixels.shape[0], : pixels.shape[1]] = pixels
    return {"canvas": canvas, "size": np.array([pixels.shape[:2]], np.int32)}
