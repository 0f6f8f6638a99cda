"""Resized position embeddings: this library, and timm with and without antialiasing.

    python benchmarks/position_rules.py --reference_python=PYTHON

PYTHON is an interpreter with torch and timm. Resizes two embeddings of 14 x 14 positions, noise
N(0, .02) and one of three periods at most, as smooth as trained ones, to the grids of other
resolutions. Prints and writes the largest difference from timm's function without antialiasing,
which is the rule of DeiT's official code, and from timm's default, which antialiases, each over
the largest value.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from deit_jax.models.position import resize_position

GRID, DIM = 14, 64
RESOLUTIONS = (160, 192, 256, 320, 384)
# torchvision without its compiled operators still imports once these are declared.
REFERENCE = """
import sys, json, numpy, torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import timm
from timm.layers import resample_abs_pos_embed as resample
arrays = dict(numpy.load(sys.argv[1]))
out = {}
for name, array in arrays.items():
    for side in json.loads(sys.argv[3]):
        for antialias in (False, True):
            new = resample(torch.from_numpy(array), [side, side], num_prefix_tokens=0,
                           antialias=antialias)
            out[f"{name} {side} {antialias}"] = new.numpy()
numpy.savez(sys.argv[2], **out)
print(json.dumps({"timm": timm.__version__, "torch": torch.__version__}))
"""


def embeddings() -> dict[str, np.ndarray]:
    """f32 [1, 196, DIM] by name."""
    draw = np.random.RandomState(0)
    noise = 0.02 * draw.randn(1, GRID * GRID, DIM)
    rows, columns = np.mgrid[:GRID, :GRID].reshape(2, -1, 1) / GRID
    periods, phase = draw.uniform(-3, 3, (2, DIM)), draw.uniform(0, 1, DIM)
    smooth = np.cos(2 * np.pi * (rows * periods[0] + columns * periods[1] + phase))[None]
    return {"noise": noise.astype(np.float32), "smooth": smooth.astype(np.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reference_python", default=sys.executable)
    output = pathlib.Path(__file__).resolve().parent / "results" / "position_rules.json"
    parser.add_argument("--output", type=pathlib.Path, default=output)
    flags = parser.parse_args()
    sides = [resolution // 16 for resolution in RESOLUTIONS]
    with tempfile.TemporaryDirectory() as scratch:
        source, target = (str(pathlib.Path(scratch, name)) for name in ("in.npz", "out.npz"))
        np.savez(source, **embeddings())
        command = [flags.reference_python, "-c", REFERENCE, source, target, json.dumps(sides)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        expected = dict(np.load(target))
    rows = []
    for name, position in embeddings().items():
        for resolution, side in zip(RESOLUTIONS, sides, strict=True):
            ours = resize_position(position, (GRID, GRID), (side, side))
            row: dict = {"embedding": name, "resolution": resolution}
            for rule, antialias in (("official", False), ("antialiased", True)):
                other = expected[f"{name} {side} {antialias}"]
                row[rule] = float(np.abs(ours - other).max() / np.abs(other).max())
            rows.append(row)
            print(
                f"{name:7s} 224 to {resolution}  official {row['official']:.1e}  "
                f"antialiased {row['antialiased']:.1e}"
            )
    result = {"differences": rows, "reference": json.loads(answer)}
    flags.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(max(row["official"] for row in rows) > 1e-5)


if __name__ == "__main__":
    main()
