"""Writes tests/vectors/trajectory.npz: 20 training steps in torch with timm's models.

Run with torch and timm installed: `python tests/reference/make_trajectory.py`. Plain,
hard-distilled and soft-distilled on the token; the teacher is a plain model of its own
weights. Stored are the losses, the shapes of the weights and the final parameters.
"""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import trajectory_data as data

_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.loss import SoftTargetCrossEntropy
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_weight_decay


def model(kind: type, *, seed: int) -> torch.nn.Module:
    built = kind(
        img_size=data.IMAGE,
        patch_size=data.PATCH,
        embed_dim=data.DIM,
        depth=data.DEPTH,
        num_heads=data.HEADS,
        num_classes=data.CLASSES,
    )
    shapes = {name: tuple(p.shape) for name, p in built.named_parameters()}
    drawn = data.weights(shapes, seed=seed)
    built.load_state_dict({name: torch.from_numpy(value) for name, value in drawn.items()})
    return built


def losses(student, teacher, image, target, distillation, alpha, tau):
    """Total, label and distillation loss as the official code takes them."""
    if distillation == "none":
        loss = SoftTargetCrossEntropy()(student(image), target)
        return loss, loss, torch.zeros(())
    logits, dist_logits = student(image)
    label_loss = SoftTargetCrossEntropy()(logits, target)
    with torch.no_grad():
        teacher_logits = teacher(image)
    top = teacher_logits.topk(2, dim=1).values
    assert (top[:, 0] - top[:, 1]).min() > 1e-4, "the teacher's choice hangs on rounding"
    if distillation == "hard":
        distilled = F.cross_entropy(dist_logits, teacher_logits.argmax(dim=1))
    else:
        distilled = (
            F.kl_div(
                F.log_softmax(dist_logits / tau, dim=1),
                F.log_softmax(teacher_logits / tau, dim=1),
                reduction="sum",
                log_target=True,
            )
            * tau**2
            / dist_logits.numel()
        )
    return (1 - alpha) * label_loss + alpha * distilled, label_loss, distilled


def train(variant: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    distillation, alpha, tau = data.VARIANTS[variant]
    teacher = model(VisionTransformer, seed=2).eval()
    student = model(VisionTransformer if variant == "plain" else VisionTransformerDistilled, seed=1)
    student.train()
    if variant != "plain":
        student.set_distilled_training(True)
    groups = param_groups_weight_decay(
        student, data.WEIGHT_DECAY, no_weight_decay_list={"pos_embed", "cls_token"}
    )
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    history = []
    for step in range(data.STEPS):
        image, target = data.batch(step)
        image = torch.from_numpy(image).permute(0, 3, 1, 2)
        for group in optimizer.param_groups:
            group["lr"] = data.rate(step)
        terms = losses(student, teacher, image, torch.from_numpy(target), distillation, alpha, tau)
        optimizer.zero_grad()
        terms[0].backward()
        optimizer.step()
        history.append([float(term.detach()) for term in terms])
    return np.array(history), {n: p.detach().numpy() for n, p in student.named_parameters()}


def main() -> None:
    out = {}
    for variant in data.VARIANTS:
        history, final = train(variant)
        out[f"{variant}/losses"] = history
        out |= {f"{variant}/final/{name}": value for name, value in final.items()}
        print(variant, history[[0, 5, 10, 19]].round(4).tolist())
    target = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "trajectory.npz"
    np.savez_compressed(target, **out)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
