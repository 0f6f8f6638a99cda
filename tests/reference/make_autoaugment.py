"""Writes tests/vectors/augment_autoaugment.npz: timm's AutoAugment policies, and draws of two.

Run with Pillow < 13, torch, torchvision and timm: `python tests/reference/make_autoaugment.py`.
"""

import random

import make_augment
import numpy as np
from timm.data import auto_augment

POLICIES = ("original", "originalr", "v0", "v0r")
SAMPLES = 12000


def number(name: str) -> int:
    """Place in the list of operations; the kinds of one operation share it."""
    return make_augment.OPERATIONS.index(name.removesuffix("Increasing").removesuffix("Original"))


def sub_policies(name: str) -> np.ndarray:
    """float64 [25, 2, 5]: operation, probability, magnitude, its argument, and with a minus."""
    table = []
    for pair in auto_augment.auto_augment_transform(name).policy:
        for op in pair:
            arguments = (0.0, 0.0)
            if op.level_fn is not None:
                signs = (False, True)
                arguments = [
                    make_augment.with_sign(op.level_fn, op.magnitude, negate)[0] for negate in signs
                ]
            table.append((number(op.name), op.prob, op.magnitude, *arguments))
    return np.array(table, np.float64).reshape(-1, 2, 5)


def samples(config: str) -> np.ndarray:
    """float32 [n, 2, 2]: operation (15 = not applied) and argument of timm's draws."""
    policy = auto_augment.auto_augment_transform(config)
    drawn = np.tile(np.float32([15, 0]), (SAMPLES, 2, 1))
    row = [0]
    for pair in policy.policy:
        for layer, op in enumerate(pair):
            code = number(op.name)

            def record(image, *args, layer=layer, code=code, **kwargs):
                drawn[row[0], layer] = code, args[0] if args else 0.0
                return image

            op.aug_fn = record
    for row[0] in range(SAMPLES):
        policy(None)
    return drawn


def main() -> None:
    random.seed(0)
    arrays = {f"table_{name}": sub_policies(name) for name in POLICIES}
    arrays["drawn_original"] = samples("original")
    arrays["drawn_v0r_noisy"] = samples("v0r-mstd0.5")
    path = make_augment.VECTORS / "augment_autoaugment.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
