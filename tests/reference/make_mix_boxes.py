"""Writes tests/vectors/mix_boxes.npz: CutMix boxes of timm 0.3.2, which the published runs used.

Run with torch installed and TIMM the unpacked wheel of timm 0.3.2:
`python tests/reference/make_mix_boxes.py TIMM`.
"""

import pathlib
import runpy
import sys
import types

import numpy as np

# (height, width): the published size, then sizes that nobody published.
SIZES = ((224, 224), (30, 41), (9, 9), (160, 96))
# (side, range of sides): no published run has one; the first is the example of timm's option.
RANGES = ((224, (0.2, 0.8)), (30, (0.1, 1.0)), (9, (0.3, 0.7)), (96, (0.25, 0.5)))
SAMPLES = 500


class Recorder(types.SimpleNamespace):
    """numpy as these functions use it; keeps (low, high, draw) of every random number."""

    def __init__(self) -> None:
        self.drawn: list[tuple[int, int, int]] = []
        random = types.SimpleNamespace(randint=self.randint)
        super().__init__(sqrt=np.sqrt, clip=np.clip, random=random)

    def randint(self, low: int, high: int, size: None = None) -> int:
        self.drawn.append((low, high, np.random.randint(low, high)))
        return self.drawn[-1][2]


def boxes(function, shape: tuple[int, int], arguments: list) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n, 4] (top, bottom, left, right), and int32 [n, draws, 3] (low, high, draw)."""
    found, draws = [], []
    for argument in arguments:
        function.__globals__["np"] = recorder = Recorder()
        found.append(function((3, *shape), argument))
        draws.append(recorder.drawn)
    return np.array(found, np.int32), np.array(draws, np.int32)


def main() -> None:
    timm = runpy.run_path(str(pathlib.Path(sys.argv[1], "timm/data/mixup.py")))
    np.random.seed(0)
    out = {}
    for height, width in SIZES:
        lam = np.random.uniform(size=SAMPLES).astype(np.float32)
        name = f"box_{height}_{width}"
        out[f"{name}_lam"] = lam
        out[name], out[f"{name}_draws"] = boxes(
            timm["rand_bbox"], (height, width), [float(x) for x in lam]
        )
    for side, limits in RANGES:
        name = f"minmax_{side}"
        out[f"{name}_limits"] = np.array(limits)
        out[name], out[f"{name}_draws"] = boxes(
            timm["rand_bbox_minmax"], (side, side), [limits] * SAMPLES
        )
    target = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "mix_boxes.npz"
    np.savez_compressed(target, **out)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
