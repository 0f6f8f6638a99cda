"""The reference side of augment_parity.py: timm, torchvision and Pillow < 13 on folders of photos.

    PYTHON benchmarks/augment_reference.py PHOTOS OUT POLICY

PHOTOS has uint8 [h, w, 3] arrays as .npy. For every photo an .npz in OUT gets the random numbers
drawn and the images that came out. POLICY is a RandAugment string of timm, which draws the
magnitudes; PYTHON is an interpreter with torch, torchvision and timm.
"""

import json
import pathlib
import random
import sys

import numpy as np
import PIL
import torch
from PIL import Image, ImageFilter, ImageOps

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm
import torchvision
from timm.data import auto_augment
from timm.data.transforms import RandomResizedCropAndInterpolation as RandomCrop
from torchvision.transforms import InterpolationMode, functional

SIZE = 224
FILL = (124, 116, 104)
NAMES = auto_augment._RAND_INCREASING_TRANSFORMS
BICUBIC = InterpolationMode.BICUBIC


def recording_policy(name: str) -> tuple[auto_augment.RandAugment, list]:
    """timm's policy, and a list to which it appends (operation, argument) of every draw."""
    hparams = {"img_mean": FILL, "interpolation": Image.BICUBIC}
    policy = auto_augment.rand_augment_transform(name, hparams)
    log: list[tuple[int, float]] = []
    for op in policy.ops:
        index = NAMES.index(op.name)

        def record(image, *args, number=index, run=op.aug_fn, **kwargs):
            if "mstd" in name:  # noisy arguments are drawn in float32 on the device
                args = tuple(float(np.float32(a)) if isinstance(a, float) else a for a in args)
            log.append((number, args[0] if args else 0.0))
            return run(image, *args, **kwargs)

        op.aug_fn = record
    return policy, log


def operations(image: Image.Image, policy, log: list) -> dict[str, np.ndarray]:
    """Every operation at a random magnitude, and the whole policy."""
    outputs, arguments = [], []
    for op in policy.ops:
        op.prob = 1.0
        log.clear()
        outputs.append(np.asarray(op(image)))
        arguments.append(log[0])
        op.prob = 0.5
    log.clear()
    whole = np.asarray(policy(image))
    drawn = (log + [(15, 0.0)] * 2)[:2]
    return {
        "operation": np.array(arguments),
        "operation_out": np.stack(outputs),
        "policy": np.array(drawn),
        "policy_out": whole,
    }


def three_augment(image: Image.Image) -> dict[str, np.ndarray]:
    sigma = np.float32(random.uniform(0.1, 2.0))
    order = random.sample(range(3), 3)
    factors = np.float32([random.uniform(0.7, 1.3) for _ in range(3)])
    adjust = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    jittered = image
    for i in order:
        jittered = adjust[i](jittered, float(factors[i]))
    return {
        "sigma": sigma,
        "blur_out": np.asarray(image.filter(ImageFilter.GaussianBlur(float(sigma)))),
        "gray_out": np.asarray(functional.rgb_to_grayscale(image, 3)),
        "solarize_out": np.asarray(ImageOps.solarize(image)),
        "order": np.array(order),
        "factor": factors,
        "jitter_out": np.asarray(jittered),
    }


def crops(photo: Image.Image) -> dict[str, np.ndarray]:
    box = RandomCrop.get_params(photo, (0.08, 1.0), (3 / 4, 4 / 3))
    resized = functional.resize(photo, int(SIZE / 0.875), BICUBIC)
    short = functional.pad(functional.resize(photo, SIZE, BICUBIC), 4, padding_mode="reflect")
    top = random.randint(0, short.height - SIZE)
    left = random.randint(0, short.width - SIZE)
    return {
        "box": np.array(box),
        "crop_out": np.asarray(functional.resized_crop(photo, *box, [SIZE, SIZE], BICUBIC)),
        "whole_out": np.asarray(functional.resize(photo, [SIZE, SIZE], BICUBIC)),
        "eval_out": np.asarray(functional.center_crop(resized, SIZE)),
        "offset": np.array((top, left)),
        "simple_out": np.asarray(functional.crop(short, top, left, SIZE, SIZE)),
    }


def main() -> None:
    photos, out = (pathlib.Path(path) for path in sys.argv[1:3])
    if int(PIL.__version__.split(".")[0]) >= 13:
        raise SystemExit(
            f"Pillow {PIL.__version__} resizes in another order; install Pillow below 13"
        )
    random.seed(0)
    np.random.seed(0)
    policy, log = recording_policy(sys.argv[3])
    for path in sorted(photos.glob("*.npy")):
        cropped = crops(Image.fromarray(np.load(path)))
        image = Image.fromarray(cropped["crop_out"])
        result = cropped | operations(image, policy, log) | three_augment(image)
        np.savez(out / path.with_suffix(".npz").name, **result)
    versions = {"timm": timm.__version__, "torchvision": torchvision.__version__}
    versions |= {"torch": torch.__version__, "pillow": PIL.__version__}
    (out / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
