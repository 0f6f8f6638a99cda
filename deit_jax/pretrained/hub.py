"""The published checkpoints: addresses, digests, accuracies; fetching them by name."""

import dataclasses
import hashlib
import os
import pathlib
import re
import shutil
import urllib.request
from typing import Any

from deit_jax import storage
from deit_jax.augment import IMAGENET_MEAN, IMAGENET_STD
from deit_jax.errors import ConfigError, close_matches

_FACEBOOK = "https://dl.fbaipublicfiles.com/deit/"
_OPENMMLAB = "https://download.openmmlab.com/mmclassification/v0/deit/"


@dataclasses.dataclass(frozen=True)
class Published:
    """One checkpoint of ImageNet-1k classifiers.

    Attributes:
      model: registered name.
      url: where its authors put it.
      sha256: first hex digits of the file's SHA-256; "" where the authors give none.
      top1: % on the ImageNet validation set, as its authors report it.
      crop_ratio: of the evaluation that gave `top1`.
      top5: likewise; None where its authors give none.
      source: where they report it.
      gflops: 10^9 multiply-accumulates per image, as its authors count them; likewise.
    """

    model: str
    url: str
    sha256: str
    top1: float
    crop_ratio: float
    top5: float | None = None
    gflops: float | None = None
    source: str = ""


_DEIT = "README_deit.md of facebookresearch/deit"
_DEIT3 = "README_revenge.md of facebookresearch/deit"
# timm reports 83.00 at 224 pixels with crop ratio .95.
_REGNET = "table 2 of arXiv 2012.12877"
_MMPRETRAIN = "configs/deit/metafile.yml of open-mmlab/mmpretrain 1.2.0"

# timm's names; the tag after the dot distinguishes checkpoints of one architecture. The names of
# Facebook's files carry the digest, but for DeiT-III.
PUBLISHED: dict[str, Published] = {
    f"{model}.{tag}": Published(
        model,
        f"{_FACEBOOK}{model}-{sha256}.pth",
        sha256,
        top1,
        0.875,
        source=_REGNET if model == "regnety_160" else _DEIT,
    )
    for model, tag, sha256, top1 in (
        ("deit_tiny_patch16_224", "fb_in1k", "a1311bcf", 72.202),
        ("deit_small_patch16_224", "fb_in1k", "cd65a155", 79.854),
        ("deit_base_patch16_224", "fb_in1k", "b5f2ef4d", 81.846),
        ("deit_tiny_distilled_patch16_224", "fb_in1k", "b40b3cf7", 74.476),
        ("deit_small_distilled_patch16_224", "fb_in1k", "649709d9", 81.164),
        ("deit_base_distilled_patch16_224", "fb_in1k", "df68dfff", 83.372),
        ("deit_base_patch16_384", "fb_in1k", "8de9b5d1", 82.890),
        ("deit_base_distilled_patch16_384", "fb_in1k", "d0272ac0", 85.224),
        ("regnety_160", "deit_in1k", "a5fe301d", 82.9),
    )
} | {
    f"{model}.{tag}": Published(
        model, f"{_FACEBOOK}deit_3_{file}{suffix}.pth", "", top1, 1.0, source=_DEIT3
    )
    for model, file, scratch, pretrained in (
        ("deit3_small_patch16_224", "small_224", 81.4, 83.1),
        ("deit3_small_patch16_384", "small_384", 83.4, 84.8),
        ("deit3_medium_patch16_224", "medium_224", 83.0, 84.5),
        ("deit3_base_patch16_224", "base_224", 83.8, 85.7),
        ("deit3_base_patch16_384", "base_384", 85.0, 86.7),
        ("deit3_large_patch16_224", "large_224", 84.9, 87.0),
        ("deit3_large_patch16_384", "large_384", 85.8, 87.7),
        ("deit3_huge_patch14_224", "huge_224", 85.2, 87.2),
    )
    for tag, suffix, top1 in (
        ("fb_in1k", "_1k", scratch),
        ("fb_in22k_ft_in1k", "_21k_v1" if file == "huge_224" else "_21k", pretrained),
    )
}


def _openmmlab(name: str, file: str, top1: float, top5: float, gflops: float) -> Published:
    """A checkpoint under MMPretrain's `name`; `file` is the end of its file's name."""
    arch, large = name.split("_")[0], name.endswith("384px")
    converted = "3rdparty_" if "3rdparty" in name else ""
    return Published(
        model=f"{arch.replace('-', '_')}_patch16_{384 if large else 224}",
        url=f"{_OPENMMLAB}{arch}_{converted}{file}.pth",
        sha256=file[-8:],
        top1=top1,
        crop_ratio=1.0 if large else 0.875,
        top5=top5,
        gflops=gflops,
        source=_MMPRETRAIN,
    )


# Those called 3rdparty are Facebook's weights, evaluated again; at 384 pixels the whole image is
# squashed to a square.
PUBLISHED |= {
    row[0]: _openmmlab(*row)
    for row in (
        ("deit-tiny_4xb256_in1k", "pt-4xb256_in1k_20220218-13b382a0", 74.5, 92.24, 1.258),
        (
            "deit-tiny-distilled_3rdparty_in1k",
            "pt-4xb256_in1k_20211216-c429839a",
            74.51,
            91.9,
            1.265,
        ),
        ("deit-small_4xb256_in1k", "pt-4xb256_in1k_20220218-9425b9bb", 80.69, 95.06, 4.608),
        (
            "deit-small-distilled_3rdparty_in1k",
            "pt-4xb256_in1k_20211216-4de1d725",
            81.17,
            95.4,
            4.633,
        ),
        ("deit-base_16xb64_in1k", "pt-16xb64_in1k_20220216-db63c16c", 81.76, 95.81, 17.582),
        ("deit-base_3rdparty_in1k", "pt-16xb64_in1k_20211124-6f40c188", 81.79, 95.59, 17.582),
        (
            "deit-base-distilled_3rdparty_in1k",
            "pt-16xb64_in1k_20211216-42891296",
            83.33,
            96.49,
            17.674,
        ),
        (
            "deit-base_224px-pre_3rdparty_in1k-384px",
            "ft-16xb32_in1k-384px_20211124-822d02f2",
            83.04,
            96.31,
            55.539,
        ),
        (
            "deit-base-distilled_224px-pre_3rdparty_in1k-384px",
            "ft-16xb32_in1k-384px_20211216-e48d6000",
            85.55,
            97.35,
            55.645,
        ),
    )
}


def checkpoints_of(model: str) -> dict[str, Published]:
    """Published checkpoints of a registered model, best documented first."""
    return {name: entry for name, entry in PUBLISHED.items() if entry.model == model}


def find(name: str) -> tuple[str, Published]:
    """The checkpoint called `name`; a model's name alone means its first one.

    Raises FileNotFoundError with the nearest names.
    """
    for found in [name, *checkpoints_of(name)]:
        if found in PUBLISHED:
            return found, PUBLISHED[found]
    near = close_matches(name, PUBLISHED)
    raise FileNotFoundError(
        f"{name}: no such file or folder, and not a published checkpoint; known: {near}, and "
        "hf-hub:OWNER/NAME"
    )


def preparation(model: str) -> dict[str, Any]:
    """`mean`, `std` and `crop_ratio` of the published evaluation of a model."""
    ratio = next((entry.crop_ratio for entry in checkpoints_of(model).values()), 0.875)
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_ratio": ratio}


def cache_folder() -> pathlib.Path:
    """Where downloads are kept: `$DEIT_JAX_CACHE`, or a folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    folder = os.environ.get("DEIT_JAX_CACHE", pathlib.Path(base, "deit_jax"))
    return storage.local_path(folder, "$DEIT_JAX_CACHE")


def cached_path(entry: Published) -> pathlib.Path:
    """Where the file is once downloaded."""
    return cache_folder() / entry.url.rsplit("/", 1)[-1]


def fetch(entry: Published) -> pathlib.Path:
    """Path of the file in the cache, downloaded first if it is not there.

    Raises ConfigError without a network, and for a file whose digest differs from the
    published one.
    """
    path = cached_path(entry)
    if path.is_file():
        check_digest(path, entry.sha256)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with urllib.request.urlopen(entry.url, timeout=30) as source:
            with open(partial, "wb") as to:
                shutil.copyfileobj(source, to)
        check_digest(partial, entry.sha256)
        partial.replace(path)
    except OSError as error:  # URLError is one
        raise ConfigError(
            f"cannot download {entry.url} ({error}); download it on a machine with a network "
            f"and give its path, or copy it to {path.parent}"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_digest(path: pathlib.Path, sha256: str) -> None:
    """Raises ConfigError unless the file's SHA-256 starts with `sha256`."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise ConfigError(
            f"{path}: damaged file (SHA-256 starts with {found[: len(sha256)]}, not {sha256})"
        )


def published_model(path: pathlib.Path) -> str:
    """The registered model of a file that is called as a published one; "" for other names."""
    models = (e.model for e in PUBLISHED.values() if e.url.endswith(f"/{path.name}"))
    return next(models, "")


def digest_in_name(path: pathlib.Path) -> str:
    """The digest in a file's name by torch's convention: `model-a1311bcf.pth`; else ""."""
    match = re.search(r"-([0-9a-f]{8,64})\.(pth|pt|bin|safetensors)$", path.name)
    return match[1] if match else ""
