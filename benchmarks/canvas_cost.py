"""What shrinking photos into canvases costs: quality of the crops, host CPU, bytes to the device.

    python benchmarks/canvas_cost.py --data_dir=DIR --output=F

Every photo is shrunk to fit canvases of 512, 640 and 768 pixels as training does, then cropped to
224 pixels by Pillow's antialiased bicubic resize, and compared with the same crop of the whole
photo: the crop of the whole image, and the boxes of torchvision's RandomResizedCrop (scale 0.08 to
1), three to a photo. `regions`: a canvas of 512 pixels that holds, at full resolution, the smallest
rectangle with all three boxes, shrunk where that is larger. Needs Pillow < 13.

shrunk_percent: of the photos. agree_percent: of the values of the shrunk photos' crops, those that
differ by at most one level of 255. gradient_percent: of these crops, of the energy of the whole
photo's. cpu_ms: decoding, shrinking and the copy, per photo. kib: of a canvas.
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
    height, width = photo.shape[:2]
    rng = np.random.default_rng(seed)
    boxes = [random_box(rng, height, width) for _ in range(VIEWS)]
    left = top = 0
    part = photo
    if regions:
        left, top = (min(box[i] for box in boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in boxes) for i in (2, 3))
        part = photo[top:bottom, left:right]
    if max(part.shape[:2]) <= canvas:
        return None
    shrunk = np.ascontiguousarray(fit_within(np.ascontiguousarray(part), canvas))
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


def measure(records: list, canvas: int, regions: bool) -> dict:
    compared, seconds = [], 0.0
    row = np.zeros((canvas, canvas, 3), np.uint8)
    for seed, record in enumerate(records):
        photo = data.decode_image(record)
        start = time.process_time()
        # A part of the photo needs it at full size.
        pixels = fit_within(data.decode_image(record, at_least=None if regions else canvas), canvas)
        row[: pixels.shape[0], : pixels.shape[1]] = pixels
        seconds += time.process_time() - start
        compared.append(compare(photo, canvas, regions, seed))
    shrunk = [one for one in compared if one is not None]
    result = {
        "shrunk_percent": percent(len(shrunk) / len(records)),
        "cpu_ms": round(1e3 * seconds / len(records), 2),
        "kib": canvas * canvas * 3 // 1024,
    }
    for name in ("whole", "boxes") if shrunk else ():
        agree, full, kept = np.array([one[name] for one in shrunk]).T
        result[f"{name}_agree_percent"] = percent(agree.mean())
        result[f"{name}_gradient_percent"] = percent(kept.sum() / full.sum())
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
    cases = {"512": (512, False), "640": (640, False), "768": (768, False), "regions": (512, True)}
    result = {name: measure(records, *case) for name, case in cases.items()}
    common.report(
        {"environment": common.environment(), "photos": len(records)} | result, flags.output
    )


if __name__ == "__main__":
    main()
