"""Writes tests/vectors/augment_*.npz: what Pillow, timm and torchvision do to drawn images.

Run with Pillow < 13, torch, torchvision and timm: `python tests/reference/make_augment.py`.
No photo goes in: the images are noise, gradients and shapes drawn from a seed.
"""

import functools
import pathlib
import random
import re

import numpy as np
import PIL
import torch
from PIL import Image, ImageFilter, ImageOps

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.data import auto_augment, mixup, random_erasing
from timm.data import transforms as timm_transforms
from torchvision import transforms
from torchvision.transforms import functional

SIDE = 36
FILL = (124, 116, 104)
SAMPLES = 12000
VECTORS = pathlib.Path(__file__).resolve().parent.parent / "vectors"
SETS = {0: auto_augment._RAND_TRANSFORMS, 1: auto_augment._RAND_INCREASING_TRANSFORMS}
OPERATIONS = [name.removesuffix("Increasing") for name in SETS[1]]


def noise(draw: np.random.RandomState, height: int, width: int) -> np.ndarray:
    return draw.randint(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(draw: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """A field of soft colours whose channels span different ranges."""
    small = Image.fromarray(noise(draw, 5, 7)).resize((width, height), Image.BICUBIC)
    return (np.asarray(small) * np.array([0.55, 0.8, 1.0]) + np.array([60, 20, 0])).astype(np.uint8)


def shapes(draw: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Flat rectangles with hard edges on a ramp, with saturated corners."""
    image = np.zeros((height, width, 3), np.uint8)
    image[...] = np.linspace(0, 255, width)[None, :, None]
    for _ in range(6):
        top, left = draw.randint(0, height), draw.randint(0, width)
        image[top : top + height // 3, left : left + width // 3] = draw.randint(0, 256, 3)
    image[:3, :3], image[-3:, -3:] = 0, 255
    return image


def images(height: int, width: int, seed: int) -> np.ndarray:
    draw = np.random.RandomState(seed)
    return np.stack([make(draw, height, width) for make in (noise, smooth, shapes)])


def with_sign(level_fn, level: float, negate: bool) -> tuple:
    """timm's arguments for a level with the coin of `_randomly_negate` decided."""
    original = auto_augment._randomly_negate
    auto_augment._randomly_negate = lambda v: -v if negate else v
    try:
        return level_fn(level, {})
    finally:
        auto_augment._randomly_negate = original


def operation_vectors() -> dict[str, np.ndarray]:
    """Every operation of both sets on three images, at levels that reach its corners."""
    source = images(SIDE, SIDE, seed=1)
    rows, outputs = [], []
    for increasing, names in SETS.items():
        for number, name in enumerate(names):
            level_fn = auto_augment.LEVEL_TO_ARG[name]
            if increasing == 0 and name in SETS[1]:
                continue
            levels = [(9.0, False), (9.37, True), (10.0, True), (0.0, False), (4.6, True)]
            for level, negate in levels if level_fn else levels[:1]:
                args = with_sign(level_fn, level, negate) if level_fn else ()
                # What reaches the operation is float32 on the device.
                args = tuple(float(np.float32(a)) if isinstance(a, float) else a for a in args)
                run = functools.partial(
                    auto_augment.NAME_TO_OP[name], resample=Image.BICUBIC, fillcolor=FILL
                )
                outputs.append([np.asarray(run(Image.fromarray(x), *args)) for x in source])
                rows.append((increasing, number, level, negate, *(args or (0.0,))))
    fields = np.array(rows, np.float64)
    return {"source": source, "fields": fields, "output": np.array(outputs)}


def crop_vectors() -> dict[str, np.ndarray]:
    """Crops resized to 24, evaluation crops and simple random crops of odd-sized images."""
    draw = np.random.RandomState(2)
    result: dict[str, list] = {
        "size": [],
        "image": [],
        "box": [],
        "crop": [],
        "eval": [],
        "src": [],
    }
    result["offset"] = []
    for height, width in [(70, 51), (33, 80), (24, 24), (80, 80), (17, 13), (61, 80)]:
        for make in (noise, smooth):
            image = make(draw, height, width)
            result["size"].append((height, width))
            result["image"].append(np.pad(image, ((0, 80 - height), (0, 80 - width), (0, 0))))
            photo = Image.fromarray(image)
            box_h, box_w = draw.randint(1, height + 1), draw.randint(1, width + 1)
            top, left = draw.randint(0, height - box_h + 1), draw.randint(0, width - box_w + 1)
            result["box"].append((top, left, box_h, box_w))
            cropped = functional.resized_crop(
                photo, top, left, box_h, box_w, [24, 24], transforms.InterpolationMode.BICUBIC
            )
            result["crop"].append(np.asarray(cropped))
            whole = functional.resize(photo, int(24 / 0.875), transforms.InterpolationMode.BICUBIC)
            result["eval"].append(np.asarray(functional.center_crop(whole, 24)))
            short = functional.resize(photo, 24, transforms.InterpolationMode.BICUBIC)
            padded = functional.pad(short, 4, padding_mode="reflect")
            top, left = draw.randint(0, padded.height - 23), draw.randint(0, padded.width - 23)
            result["offset"].append((top, left))
            result["src"].append(np.asarray(functional.crop(padded, top, left, 24, 24)))
    return {name: np.array(value) for name, value in result.items()}


def three_augment_vectors() -> dict[str, np.ndarray]:
    """Blur at several sigmas, gray, solarize, and one colour jitter in each order."""
    source = images(SIDE, SIDE, seed=3)
    sigmas = np.array([0.1, 0.4, 0.77, 1.0, 1.5, 2.0], np.float32)
    blurred = [
        [np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(float(s)))) for x in source]
        for s in sigmas
    ]
    adjust = [
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    ]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    factors = np.array([0.71, 1.23, 1.3], np.float32)
    jittered = []
    for order in orders:
        row = []
        for x in source:
            photo = Image.fromarray(x)
            for i in order:
                photo = adjust[i](photo, float(factors[i]))
            row.append(np.asarray(photo))
        jittered.append(row)
    return {
        "source": source,
        "sigma": sigmas,
        "blurred": np.array(blurred),
        "gray": np.stack(
            [np.asarray(functional.rgb_to_grayscale(Image.fromarray(x), 3)) for x in source]
        ),
        "solarized": np.stack([np.asarray(ImageOps.solarize(Image.fromarray(x))) for x in source]),
        "order": np.array(orders),
        "factor": factors,
        "jittered": np.array(jittered),
    }


def table_vectors() -> dict[str, np.ndarray]:
    """Autocontrast of every (lo, hi), as where it is one below floor(255 (v - lo) / (hi - lo))."""
    low, high, level = [], [], []
    for lo in range(256):
        for hi in range(lo + 1, 256):
            ramp = np.arange(lo, hi + 1, dtype=np.uint8)[None]
            got = np.asarray(ImageOps.autocontrast(Image.fromarray(ramp)))[0].astype(int)
            floor = (np.arange(hi - lo + 1) * 255) // (hi - lo)
            for v in np.nonzero(got != floor)[0]:
                assert got[v] == floor[v] - 1
                low.append(lo)
                high.append(hi)
                level.append(lo + v)
    return {"low": np.uint8(low), "high": np.uint8(high), "level": np.uint8(level)}


def policy_samples(config: str) -> np.ndarray:
    """float32 [n, layers, 2]: operation (15 = not applied) and argument of timm's draws."""
    policy = auto_augment.rand_augment_transform(
        config, {"img_mean": FILL, "interpolation": Image.BICUBIC}
    )
    log: list[list[tuple]] = []
    for op in policy.ops:
        number = OPERATIONS.index(op.name.removesuffix("Increasing"))

        def record(img, *args, number=number, **kwargs):
            log[-1].append((number, args[0] if args else 0.0))
            return img

        op.aug_fn = record
    for _ in range(SAMPLES):
        log.append([])
        policy(None)
        log[-1] += [(15, 0.0)] * (policy.num_layers - len(log[-1]))
    return np.array(log, np.float32)


def crop_samples(height: int, width: int) -> np.ndarray:
    photo = Image.new("RGB", (width, height))
    get = timm_transforms.RandomResizedCropAndInterpolation.get_params
    return np.array([get(photo, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(SAMPLES)], np.int16)


class BoxLog(list):
    """Stands for an image and keeps the boxes that are written to it."""

    def __setitem__(self, where, pixels):
        _, rows, columns = where
        self.append(
            (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        )


def erase_samples(max_count: int) -> np.ndarray:
    """int16 [n, max_count, 4]: boxes (top, left, height, width) erased at 224, zeros for none."""
    erase = random_erasing.RandomErasing(0.25, mode="const", max_count=max_count, device="cpu")
    boxes = np.zeros((SAMPLES, max_count, 4), np.int16)
    for row in boxes:
        log = BoxLog()
        erase._erase(log, 3, 224, 224, torch.float32)
        if log:
            row[: len(log)] = log
    return boxes


def mix_samples(**options) -> np.ndarray:
    """float32 [n, 2]: corrected lambda, and whether a box was cut, of timm's batches at 224."""
    mix = mixup.Mixup(label_smoothing=0.0, num_classes=2, **options)
    rows = []
    for _ in range(SAMPLES):
        lam, cut = mix._params_per_batch()
        if cut:
            _, lam = mixup.cutmix_bbox_and_lam(
                (1, 224, 224), lam, ratio_minmax=mix.cutmix_minmax, correct_lam=mix.correct_lam
            )
        rows.append((lam, cut))
    return np.array(rows, np.float32)


def distribution_samples() -> dict[str, np.ndarray]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    samples = {
        "policy_default": policy_samples("rand-m9-mstd0.5-inc1"),
        "policy_plain": policy_samples("rand-m7-n3-p0.7"),
        "policy_uniform": policy_samples("rand-m8-mstd101-mmax12-inc1"),
        "policy_weighted": policy_samples("rand-m6-mstd1-tweights-inc1"),
        "crop_usual": crop_samples(375, 500),
        "crop_long": crop_samples(60, 500),
        "erase_one": erase_samples(1),
        "erase_three": erase_samples(3),
        "mix_default": mix_samples(mixup_alpha=0.8, cutmix_alpha=1.0),
        "mix_rare": mix_samples(mixup_alpha=0.2, prob=0.6),
        "mix_minmax": mix_samples(mixup_alpha=0.0, cutmix_minmax=(0.2, 0.8)),
    }
    return samples


def main() -> None:
    if int(re.match(r"\d+", PIL.__version__).group()) >= 13:
        raise SystemExit(f"Pillow {PIL.__version__} resizes in another order; use one below 13")
    for name, arrays in {
        "operations": operation_vectors(),
        "crops": crop_vectors(),
        "three": three_augment_vectors(),
        "autocontrast": table_vectors(),
        "distributions": distribution_samples(),
    }.items():
        path = VECTORS / f"augment_{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
