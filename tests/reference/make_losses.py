"""Writes tests/vectors/losses.npz: timm and torch losses, and their gradients, on fixed logits.

Run with torch and timm installed: `python tests/reference/make_losses.py`.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

BATCH, CLASSES, SMOOTHING = 12, 20, 0.1


def inputs() -> dict[str, np.ndarray]:
    """Logits of two heads and of a teacher, labels, and mixed and smoothed targets."""
    draw = np.random.RandomState(0)
    logits, dist_logits, teacher = (
        (scale * draw.randn(BATCH, CLASSES)).astype(np.float32) for scale in (2.0, 1.0, 4.0)
    )
    # An extreme row: probabilities that underflow must not become NaN or infinite losses.
    logits[0, 3], teacher[0, 5] = 60.0, 80.0
    label = draw.randint(0, CLASSES, BATCH)
    lam = draw.beta(0.8, 0.8, size=(BATCH, 1))
    off = SMOOTHING / CLASSES
    smooth = np.where(np.eye(CLASSES)[label] > 0, 1 - SMOOTHING + off, off)
    hard = np.eye(CLASSES)[label]
    return {
        "logits": logits,
        "dist_logits": dist_logits,
        "teacher": teacher,
        "label": label.astype(np.int32),
        "mixed_smooth": (lam * smooth + (1 - lam) * smooth[::-1]).astype(np.float32),
        "mixed": (lam * hard + (1 - lam) * hard[::-1]).astype(np.float32),
    }


def soft(student: torch.Tensor, teacher: torch.Tensor, tau: float, per: int) -> torch.Tensor:
    """tau^2 KL(teacher || student) of the tempered distributions, over `per`."""
    divergence = F.kl_div(
        F.log_softmax(student / tau, dim=1),
        F.log_softmax(teacher / tau, dim=1),
        reduction="sum",
        log_target=True,
    )
    return divergence * tau**2 / per


def main() -> None:
    arrays = inputs()
    tensor = {k: torch.tensor(v) for k, v in arrays.items()}
    double = {k: v.double() if v.is_floating_point() else v for k, v in tensor.items()}
    label, teacher = double["label"].long(), double["teacher"]
    losses = {
        "ce_mixed": lambda x: SoftTargetCrossEntropy()(x, double["mixed_smooth"]),
        "ce_smooth": lambda x: LabelSmoothingCrossEntropy(smoothing=SMOOTHING)(x, label),
        "ce_hard": lambda x: F.cross_entropy(x, label),
        "bce": lambda x: F.binary_cross_entropy_with_logits(x, double["mixed"].gt(0).double()),
        "distil_hard": lambda x: F.cross_entropy(x, teacher.argmax(dim=1)),
    }
    for tau in (1.0, 3.0):
        for name, per in (("numel", BATCH * CLASSES), ("batch", BATCH)):
            losses[f"distil_soft_{name}_tau{tau:g}"] = lambda x, tau=tau, per=per: soft(
                x, teacher, tau, per
            )
    out = dict(arrays)
    for name, loss in losses.items():
        student = double["dist_logits" if name.startswith("distil") else "logits"].clone()
        student.requires_grad_(True)
        value = loss(student)
        value.backward()
        out[name], out[f"{name}_grad"] = value.detach().numpy(), student.grad.numpy()
    target = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "losses.npz"
    np.savez_compressed(target, **out)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
