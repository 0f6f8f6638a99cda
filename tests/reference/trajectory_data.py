"""The weights and batches of the training trajectory, drawn with numpy on both sides."""

import numpy as np

STEPS, BATCH, CLASSES, IMAGE, PATCH = 20, 16, 10, 32, 8
DIM, DEPTH, HEADS = 48, 2, 3
SMOOTHING = 0.1
PEAK, FLOOR, WARMUP_STEPS, WEIGHT_DECAY = 2e-3, 1e-5, 5, 0.05
# variant: (distillation, alpha, tau)
VARIANTS = {"plain": ("none", 0.0, 1.0), "hard": ("hard", 0.5, 1.0), "soft": ("soft", 0.1, 3.0)}


def weights(shapes: dict[str, tuple[int, ...]], *, seed: int) -> dict[str, np.ndarray]:
    """f32 tensors under timm's names; norms start off 1 and biases off 0 so that both count."""
    random = np.random.RandomState(seed)
    drawn = {}
    for name in sorted(shapes):
        value = random.randn(*shapes[name])
        if "norm" in name and name.endswith("weight"):
            value = 1.0 + 0.1 * value
        elif name.endswith("weight") and len(shapes[name]) > 1:
            value = value / np.sqrt(np.prod(shapes[name][1:]))
        else:
            value = 0.1 * value
        drawn[name] = value.astype(np.float32)
    return drawn


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Images f32 [B, 32, 32, 3] and targets f32 [B, K], mixed with the reversed batch.

    Odd steps are mixup, even ones CutMix with a fixed kind of box.
    """
    random = np.random.RandomState(1000 + step)
    label = random.randint(0, CLASSES, BATCH)
    # A class shifts the mean of its images, so that there is something to learn.
    shift = np.random.RandomState(7).randn(CLASSES, 1, 1, 3)[label]
    image = random.randn(BATCH, IMAGE, IMAGE, 3) + shift
    off = SMOOTHING / CLASSES
    target = np.where(np.eye(CLASSES)[label] > 0, 1 - SMOOTHING + off, off)
    if step % 2:
        lam = random.beta(0.8, 0.8)
        image = lam * image + (1 - lam) * image[::-1]
    else:
        top, left = random.randint(0, 16, 2)
        cut = image.copy()
        cut[:, top : top + 12, left : left + 16] = image[::-1, top : top + 12, left : left + 16]
        image, lam = cut, 1 - 12 * 16 / IMAGE**2
    target = lam * target + (1 - lam) * target[::-1]
    return image.astype(np.float32), target.astype(np.float32)


def rate(step: int) -> float:
    """Linear warm-up from 1e-6 into a cosine over all steps."""
    if step < WARMUP_STEPS:
        return 1e-6 + step * (PEAK - 1e-6) / WARMUP_STEPS
    return FLOOR + 0.5 * (PEAK - FLOOR) * (1 + np.cos(np.pi * step / STEPS))
