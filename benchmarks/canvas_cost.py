"""What shrinking photos into canvases costs: quality of the crops, host CPU, bytes to the device.

    python benchmarks/canvas_cost.py --data_dir=DIR --output=F

Every photo is shrunk to fit canvases of 512, 640 and 768 pixels as training does, then cropped to
224 pixels by Pillow's antialiased bicubic resize, and compared with the same crop of the whole
photo: the crop of the whole image, and the boxes of torchvision's RandomResizedCrop (scale 0.08 to
1), three to a photo. `regions`: a canvas that holds, at full resolution, the smallest rectangle
with all three boxes, shrunk where that is larger. Needs Pillow < 13.

shrunk_percent: of the photos. agree_percent: of the values of the shrunk photos' crops, those that
differ by at most one level of 255. gradient_percent: of these crops, of the energy of the whole
photo's. differ_percent_of_all: of the values of all photos' crops. cpu_ms: decoding, shrinking
and the copy, per photo, the cases in turn. kib: of a canvas.
"""

import argparse
import math
import os
import time

import common
import numpy as np
from PIL import Image

from deit_jax import data
from deit_jax.data.resize import fit_within

CROP = 224
CANVASES = (512, 640, 768)
VIEWS = 3


def random_box(rng: np.random.Generator, height: int, width: int) -> tuple[float, ...]:
    """Left, top, right, bottom of torchvision's RandomResizedCrop, in whole pixels."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return left, top, left + w, top + h
    return 0, 0, width, height


def crop(pixels: np.ndarray, box, origin=(0, 0), scale=(1.0, 1.0)) -> np.ndarray:
    """int16 [224, 224, 3] of a box of the photo, `pixels` being a part of it that is scaled."""
    x, y = ((np.array(box).reshape(2, 2) - origin) * scale).T
    shape = pixels.shape[1], pixels.shape[0]
    inside = (max(x[0], 0), max(y[0], 0), min(x[1], shape[0]), min(y[1], shape[1]))
    resized = Image.fromarray(pixels).resize((CROP, CROP), Image.Resampling.BICUBIC, box=inside)
    return np.asarray(resized).astype(np.int16)


def gradient(image: np.ndarray) -> float:
    rows, columns = np.diff(image, axis=0), np.diff(image, axis=1)
    return float(np.square(rows, dtype=float).mean() + np.square(columns, dtype=float).mean())


def compare(photo: np.ndarray, canvas: int, regions: bool, seed: int) -> dict | None:
    """Agreement and gradients of the crops of a photo that is shrunk; None where it is not."""
    part, boxes, (left, top) = region(photo, seed)
    if not regions:
        part, left, top = photo, 0, 0
    if max(part.shape[:2]) <= canvas:
        return None
    shrunk = np.ascontiguousarray(fit_within(part, canvas))
    scale = (shrunk.shape[1] / part.shape[1], shrunk.shape[0] / part.shape[0])
    whole = (left, top, left + part.shape[1], top + part.shape[0])
    result = {}
    for name, some in (("whole", [whole]), ("boxes", boxes)):
        pairs = [(crop(photo, box), crop(shrunk, box, (left, top), scale)) for box in some]
        result[name] = [np.mean([np.mean(abs(a - b) <= 1) for a, b in pairs])]
        result[name] += [sum(map(gradient, side)) for side in zip(*pairs, strict=True)]
    return result


def percent(value: float) -> float:
    return round(100 * float(value), 1)


def region(photo: np.ndarray, seed: int) -> tuple[np.ndarray, list, tuple[int, int]]:
    """The smallest part of a photo that has the boxes of all views, the boxes, its corner."""
    rng = np.random.default_rng(seed)
    boxes = [random_box(rng, *photo.shape[:2]) for _ in range(VIEWS)]
    left, top = (min(box[i] for box in boxes) for i in (0, 1))
    right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
    return np.ascontiguousarray(photo[top:bottom, left:right]), boxes, (left, top)


def cpu_ms(records: list, cases: dict[str, tuple[int, bool]]) -> dict[str, float]:
    """Milliseconds of CPU per photo and case, the cases in turn for each photo."""
    seconds = dict.fromkeys(cases, 0.0)
    rows = {name: np.zeros((canvas, canvas, 3), np.uint8) for name, (canvas, _) in cases.items()}
    for seed, record in enumerate(records):
        turn = list(cases)[seed % len(cases) :] + list(cases)[: seed % len(cases)]
        for name in turn:
            canvas, regions = cases[name]
            start = time.process_time()
            # A part of the photo needs it at full size.
            pixels = data.decode_image(record, at_least=None if regions else canvas)
            pixels = fit_within(region(pixels, seed)[0] if regions else pixels, canvas)
            rows[name][: pixels.shape[0], : pixels.shape[1]] = pixels
            seconds[name] += time.process_time() - start
    return {name: round(1e3 * total / len(records), 2) for name, total in seconds.items()}


def measure(records: list, canvas: int, regions: bool) -> dict:
    compared = [
        compare(data.decode_image(record), canvas, regions, seed)
        for seed, record in enumerate(records)
    ]
    shrunk = [one for one in compared if one is not None]
    result = {
        "shrunk_percent": percent(len(shrunk) / len(records)),
        "kib": canvas * canvas * 3 // 1024,
    }
    for name in ("whole", "boxes") if shrunk else ():
        agree, full, kept = np.array([one[name] for one in shrunk]).T
        result[f"{name}_agree_percent"] = percent(agree.mean())
        result[f"{name}_gradient_percent"] = percent(kept.sum() / full.sum())
        result[f"{name}_differ_percent_of_all"] = percent(np.sum(1 - agree) / len(records))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data_dir", default=os.environ.get("DEIT_JAX_TFDS"))
    parser.add_argument("--limit", type=int, help="photos of each split")
    parser.add_argument("--output", help="JSON file")
    flags = parser.parse_args()
    opened = data.open_data(name="imagenet2012", data_dir=flags.data_dir)
    records = []
    for source in (opened.train, opened.eval):
        records += source.get(np.arange(min(len(source), flags.limit or len(source))))[0]
    cases = {f"{side}{end}": (side, bool(end)) for end in ("", " regions") for side in CANVASES}
    result = {name: measure(records, *case) for name, case in cases.items()}
    cpu_ms(records[:50], cases)  # the decoder's first images
    for name, ms in cpu_ms(records, cases).items():
        result[name]["cpu_ms"] = ms
    common.report(
        {"environment": common.environment(), "photos": len(records)} | result, flags.output
    )


if __name__ == "__main__":
    main()
