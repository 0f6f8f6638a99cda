"""Every operation of the device's augmentation against timm and Pillow < 13 on photos.

    python benchmarks/augment_parity.py --data_dir=DIR --reference_python=PYTHON

DIR is a tfds data_dir with imagenet2012, PYTHON an interpreter with torch, torchvision, timm and
Pillow < 13. All photos of the splits train and validation are compared at 224 pixels, with the
random numbers that timm drew. Prints and writes, per operation, the share of values that differ,
the share that differ by more than one level, the largest difference and the mean one; exits with
status 1 if one of the first three is over its limit.

--policy is what draws the magnitudes of the fifteen operations. At round ones, as rand-m5-inc1
has, ties are frequent that float64's rounding decides in Pillow, and limits are wider.

--canvas=512 compares crops alone, without a limit, of the photos that training shrinks to such a
canvas before it crops: timm's boxes, scaled and rounded to the shrunk photo, and the whole image.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from deit_jax import data
from deit_jax.augment import color, crop, make_eval_transform, operations, policies, three_augment
from deit_jax.augment.resample import MATMULS, resample
from deit_jax.data.resize import fit_within

HERE = pathlib.Path(__file__).resolve().parent
SIZE = 224
CHUNK = 10
FILL = (124, 116, 104)
NAMES = operations.RAND_AUGMENT_OPERATIONS
POLICY = "rand-m9-mstd0.5-inc1"
SPEC = policies.rand_augment(POLICY)
EXACT = {"differ": 0.0, "over_1": 0.0, "worst": 0}
RESIZE = {"differ": 1e-3, "over_1": 1e-3, "worst": 2}
AFFINE = {"differ": 1e-4, "over_1": 0.0, "worst": 1}
ROUND = {"differ": 5e-3, "over_1": 0.0, "worst": 1}
GEOMETRIC = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


def make_limits(policy: str) -> dict[str, dict]:
    """The limits of every operation with the magnitudes of `policy`."""
    resized = ("crop", "whole image", "evaluation", "simple crop", "blur")
    geometric = AFFINE if "mstd" in policy else ROUND
    return {
        **dict.fromkeys(resized, RESIZE),
        **{name: geometric if name in GEOMETRIC else EXACT for name in NAMES},
        **dict.fromkeys(("gray", "solarize at 128", "jitter"), EXACT),
        "whole policy": geometric,
    }


class Tally:
    """Counts of differing values per operation."""

    def __init__(self):
        self.counts: dict[str, np.ndarray] = {}
        self.worst: dict[str, int] = {}

    def add(self, name: str, got: np.ndarray, expected: np.ndarray) -> None:
        difference = np.abs(np.asarray(got).astype(int) - expected)
        over = [(difference > limit).sum() for limit in (0, 1)]
        counts = np.array([difference.size, *over, difference.sum()])
        self.counts[name] = self.counts.get(name, 0) + counts
        self.worst[name] = max(self.worst.get(name, 0), int(difference.max()))

    def table(self, limits: dict[str, dict]) -> dict[str, dict]:
        """By operation; one without limits is within them."""
        rows = {}
        for name, (total, differ, over, levels) in self.counts.items():
            row = {"differ": differ / total, "over_1": over / total, "worst": self.worst[name]}
            limit = limits.get(name, {})
            row["within_limits"] = all(row[key] <= limit[key] for key in limit)
            rows[name] = row | {"mean": levels / total, "values": int(total)}
        return rows


def decode_photos(
    data_dir: str, splits: list[str], folder: pathlib.Path, limit: int, canvas: int | None
) -> int:
    """Writes the first `limit` photos of each split as .npy, and returns how many were read.

    With a canvas only those that it shrinks, which are written to `folder`/../shrunk too.
    """
    read = 0
    for split in splits:
        source = data.open_data(name="imagenet2012", data_dir=data_dir, train_split=split).train
        for i in range(min(limit, len(source))):
            (record,), _ = source.get(np.array([i]))
            photo, name = data.decode_image(record), f"{split}{i:05d}.npy"
            read += 1
            if canvas is not None:
                if max(photo.shape) <= canvas:
                    continue
                shrunk = fit_within(data.decode_image(record, at_least=canvas), canvas)
                np.save(folder.parent / "shrunk" / name, shrunk)
            np.save(folder / name, photo)
    return read


@jax.jit
def run_layer(pixels, operation, value):
    return operations.apply_layer(
        pixels, operation, value, names=NAMES, shares=SPEC.shares, fill=FILL
    )


def make_crop_functions(matmul: str):
    """Jitted (canvas, size, box or offset) -> levels, for the three crops of one photo."""
    to_levels = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    transform = make_eval_transform(image_size=SIZE, crop_ratio=0.875, matmul=matmul, **to_levels)

    def simple(canvas, size, offset):
        resized = crop.short_side_resized(size, SIZE)
        position = jnp.arange(SIZE)[None, None] + offset[:, :, None] - crop.SRC_PADDING
        position = crop.reflect(position, resized[:, :, None])
        axes = crop.Axes(position, resized, jnp.zeros_like(size), size)
        return resample(canvas, axes, matmul=matmul)

    return {
        "crop": jax.jit(lambda c, _, box: resample(c, crop.box_axes(box, SIZE), matmul=matmul)),
        "evaluation": jax.jit(lambda c, s, _: jnp.round(transform({"canvas": c, "size": s}))),
        "simple crop": jax.jit(simple),
    }


def on_canvas(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A canvas [1, C, C, 3] that holds the photo, and its size [1, 2]."""
    side = max(512, 1 << (max(photo.shape) - 1).bit_length())
    canvas = np.zeros((1, side, side, 3), np.uint8)
    canvas[0, : photo.shape[0], : photo.shape[1]] = photo
    return canvas, np.array([photo.shape[:2]], np.int32)


def compare_crops(tally: Tally, photo: np.ndarray, expected: dict, functions: dict) -> None:
    canvas, size = on_canvas(photo)
    expected["whole"] = np.array([0, 0, *photo.shape[:2]])
    for name, kind, drawn, out in [
        ("crop", "crop", "box", "crop_out"),
        ("whole image", "crop", "whole", "whole_out"),
        ("evaluation", "evaluation", "box", "eval_out"),
        ("simple crop", "simple crop", "offset", "simple_out"),
    ]:
        got = functions[kind](canvas, size, expected[drawn][None].astype(np.int32))
        tally.add(name, got[0], expected[out])


def compare_shrunk(
    tally: Tally, photo: np.ndarray, shrunk: np.ndarray, expected: dict, functions: dict
) -> None:
    """Crops of the shrunk photo against those of the photo; the box is rounded to its pixels."""
    canvas, size = on_canvas(shrunk)
    scale = np.tile(np.array(shrunk.shape[:2]) / photo.shape[:2], 2)
    box = np.maximum(np.round(expected["box"] * scale), (0, 0, 1, 1))
    box[:2] = np.minimum(box[:2], size[0] - box[2:])
    for name, chosen, out in [
        ("crop", box, "crop_out"),
        ("whole image", np.array([0, 0, *shrunk.shape[:2]]), "whole_out"),
    ]:
        got = functions["crop"](canvas, size, chosen[None].astype(np.int32))
        tally.add(name, got[0], expected[out])


def compare_operations(tally: Tally, chunk: list[dict]) -> None:
    """The fifteen operations in one batch, as in training, and the policy layer by layer."""
    images = np.stack([photo["crop_out"] for photo in chunk])
    drawn = np.stack([photo["operation"] for photo in chunk])
    operation, value = drawn[..., 0].astype(np.int32), drawn[..., 1].astype(np.float32)
    count = len(NAMES)
    got = run_layer(np.repeat(images, count, axis=0), operation.ravel(), value.ravel())
    got = np.asarray(got).reshape(len(chunk), count, *images.shape[1:])
    for number, name in enumerate(NAMES):
        tally.add(name, got[:, number], np.stack([x["operation_out"][number] for x in chunk]))
    policy = np.stack([photo["policy"] for photo in chunk])
    for layer in range(2):
        images = run_layer(
            images, policy[:, layer, 0].astype(np.int32), policy[:, layer, 1].astype(np.float32)
        )
    tally.add("whole policy", images, np.stack([photo["policy_out"] for photo in chunk]))


@jax.jit
def run_three(pixels, sigma, bases, factors):
    neutral = color.neutral(len(pixels))
    gray = neutral._replace(base=neutral.base * 0 + color.GRAY, factor=neutral.factor * 0)
    solarized = neutral._replace(threshold=neutral.threshold * 0 + 128)
    jittered = pixels
    for i in range(3):
        step = neutral._replace(base=bases[:, i], factor=factors[:, i])
        jittered = color.pointwise(jittered, step)
    return {
        "blur": three_augment.gaussian_blur(pixels, sigma),
        "gray": color.pointwise(pixels, gray),
        "solarize at 128": color.pointwise(pixels, solarized),
        "jitter": jittered,
    }


def compare_three(tally: Tally, chunk: list[dict]) -> None:
    order = np.stack([photo["order"] for photo in chunk])
    bases = np.array([color.BLACK, color.MEAN, color.GRAY], np.int32)[order]
    factors = np.stack([photo["factor"] for photo in chunk])
    got = run_three(
        np.stack([photo["crop_out"] for photo in chunk]),
        np.stack([photo["sigma"] for photo in chunk]),
        bases,
        np.take_along_axis(factors, order, axis=1),
    )
    stored = {"blur": "blur_out", "gray": "gray_out", "jitter": "jitter_out"}
    for name, out in (stored | {"solarize at 128": "solarize_out"}).items():
        tally.add(name, got[name], np.stack([photo[out] for photo in chunk]))


def chunks(paths: list[pathlib.Path]) -> Iterator[list[pathlib.Path]]:
    """Full chunks only, so that one shape is compiled; the last two may overlap."""
    for start in range(0, len(paths), CHUNK):
        yield paths[min(start, max(len(paths) - CHUNK, 0)) :][:CHUNK]


def compare(photos: pathlib.Path, references: pathlib.Path, matmul: str) -> Tally:
    """Every photo; if some are in `photos`/../shrunk, the crops of those alone."""
    tally = Tally()
    functions = make_crop_functions(matmul)
    paths = sorted(photos.glob("*.npy"))
    only_crops = any((photos.parent / "shrunk").iterdir())
    for done, part in enumerate(chunks(paths)):
        loaded = [dict(np.load(references / f"{path.stem}.npz")) for path in part]
        for path, expected in zip(part, loaded, strict=True):
            if path in paths[: done * CHUNK]:  # the last two chunks overlap
                continue
            shrunk = photos.parent / "shrunk" / path.name
            if shrunk.exists():
                compare_shrunk(tally, np.load(path), np.load(shrunk), expected, functions)
            else:
                compare_crops(tally, np.load(path), expected, functions)
        if not only_crops:
            compare_operations(tally, loaded)
            compare_three(tally, loaded)
        print(f"{min((done + 1) * CHUNK, len(paths))} of {len(paths)} photos", file=sys.stderr)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--reference_python", default=sys.executable)
    parser.add_argument("--splits", default="train,validation")
    parser.add_argument("--limit", type=int, default=1_000_000, help="photos per split")
    parser.add_argument("--canvas", type=int, help="side of the canvas that shrinks photos")
    parser.add_argument("--policy", default=POLICY, help="RandAugment string of the magnitudes")
    parser.add_argument("--matmul", default="auto", choices=["auto", *MATMULS])
    parser.add_argument("--output", default=str(HERE / "results" / "augment_parity.json"))
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [pathlib.Path(scratch, name) for name in ("photos", "references", "shrunk")]
        for folder in folders:
            folder.mkdir()
        photos, references, _ = folders
        splits = flags.splits.split(",")
        read = decode_photos(flags.data_dir, splits, photos, flags.limit, flags.canvas)
        script = [flags.reference_python, str(HERE / "augment_reference.py")]
        subprocess.run([*script, str(photos), str(references), flags.policy], check=True)
        limits = {} if flags.canvas else make_limits(flags.policy)
        table = compare(photos, references, flags.matmul).table(limits)
        result = {
            "photos": read,
            "compared": len(list(photos.glob("*.npy"))),
            "canvas": flags.canvas,
            "policy": flags.policy,
            "operations": table,
            "reference": json.loads((references / "versions.json").read_text()),
            "device": jax.devices()[0].device_kind,
            "matmul": flags.matmul,
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
        }
    for name, row in table.items():
        verdict = "" if row["within_limits"] else "  OVER THE LIMIT"
        print(
            f"{name:16s} differ {row['differ']:.2e}  by more than 1 {row['over_1']:.2e}  "
            f"worst {row['worst']}  mean {row['mean']:.2e}{verdict}"
        )
    pathlib.Path(flags.output).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(flags.output).write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(not all(row["within_limits"] for row in table.values()))


if __name__ == "__main__":
    main()
