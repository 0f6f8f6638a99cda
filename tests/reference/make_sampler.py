"""Writes tests/vectors/sampler.npz: batches of the official code's repeated augmentation.

Run with torch installed and CLONE a clone of github.com/facebookresearch/deit:
`python tests/reference/make_sampler.py CLONE`.
"""

import pathlib
import runpy
import sys

import numpy as np

# Records, ranks, images per rank: the published runs, then sizes that nobody published.
SETTINGS = (
    (1_281_167, 4, 256),
    (1_281_167, 16, 64),
    (1_281_167, 8, 256),
    (1_281_167, 32, 64),
    (1_281_167, 16, 32),
    (9_700, 4, 24),
    (5_000, 2, 48),
    (1_437, 5, 10),
    (3_000, 2, 64),
    (10_001, 2, 10),
)


def main() -> None:
    official = pathlib.Path(sys.argv[1]) / "samplers.py"
    sampler_class = runpy.run_path(str(official))["RASampler"]
    out = {}
    for records, ranks, images in SETTINGS:
        # Unshuffled, so that what a rank gets are positions in the epoch's permutation.
        samplers = [
            sampler_class(range(records), num_replicas=ranks, rank=rank, shuffle=False)
            for rank in range(ranks)
        ]
        # The official loader leaves out the last, incomplete batch (drop_last).
        steps = len(samplers[0]) // images
        position = np.array([list(sampler)[: steps * images] for sampler in samplers])
        batches = position.reshape(ranks, steps, images)
        name = f"{records}_{ranks}_{images}"
        out[f"{name}_steps"] = np.int64(steps)
        # int32 [first and last step, rank, image]
        out[f"{name}_batches"] = batches[:, [0, -1]].transpose(1, 0, 2).astype(np.int32)
    target = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "sampler.npz"
    np.savez_compressed(target, **out)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
