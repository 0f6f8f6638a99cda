"""timm's worker of train_step.py: the same training step in torch.

Run by train_step.py in an environment that has torch and timm. uint8 images are normalized on
the device, bf16 autocast over f32 parameters, soft-target cross-entropy with smoothing 0.1,
fused AdamW with timm's decay groups, stochastic depth 0.1; with EMA an averaged copy of every
parameter is updated each step. Forward pass and loss are compiled by torch.compile (`compile`:
default, max-autotune, ..., or none); attention is torch's scaled_dot_product_attention. With a
teacher the student is the distilled model, and the teacher's argmax is its label; the teacher is
channels_last.
"""

import contextlib
import time

import common

from deit_jax.train.speed import timm_worker, workers

START = time.perf_counter()

torch, timm = timm_worker.import_torch_and_timm()

from timm.optim import param_groups_weight_decay

CLASSES = 1000
SMOOTHING = 0.1
EMA_DECAY = 0.99996
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"ti": "tiny", "s": "small", "b": "base"}
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def student(case: dict) -> torch.nn.Module:
    kind = "_distilled" if case["teacher"] else ""
    name = f"deit_{SIZES[case['size']]}{kind}_patch16_224"
    model = timm.create_model(
        name, num_classes=CLASSES, drop_path_rate=0.1, img_size=case["image_size"]
    )
    if case["teacher"]:
        model.set_distilled_training(True)
    return model.to(DEVICE).train()


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(target * torch.log_softmax(logits.float(), dim=-1)).sum(-1).mean()


def make_loss(model: torch.nn.Module, teacher: torch.nn.Module | None, dtype: torch.dtype):
    """`loss(image uint8 [B, H, W, 3], label int64 [B])`."""
    mean, std = (torch.tensor(x, device=DEVICE).view(1, 3, 1, 1) for x in (MEAN, STD))

    def autocast():
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(DEVICE.type, dtype=dtype)

    def loss(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        image = (image.permute(0, 3, 1, 2).float() / 255 - mean) / std
        target = torch.nn.functional.one_hot(label, CLASSES).float()
        target = target * (1 - SMOOTHING) + SMOOTHING / CLASSES
        with autocast():
            output = model(image)
            if teacher is None:
                return soft_cross_entropy(output, target)
            with torch.no_grad():
                channels_last = image.contiguous(memory_format=torch.channels_last)
                teacher_label = teacher(channels_last).argmax(-1)
        logits, dist_logits = output
        distilled = torch.nn.functional.cross_entropy(dist_logits.float(), teacher_label)
        return (soft_cross_entropy(logits, target) + distilled) / 2

    return loss


class Case:
    """A step, its state and its batch; the methods are request handlers."""

    def __init__(self, case: dict):
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.dtype = getattr(torch, case["dtype"])
        model = student(case)
        teacher = None
        if case["teacher"]:
            teacher = timm.create_model(case["teacher"], num_classes=CLASSES).to(DEVICE).eval()
            teacher = teacher.to(memory_format=torch.channels_last)
        self.parameters = list(model.parameters())
        groups = param_groups_weight_decay(
            model, 0.05, no_weight_decay_list=model.no_weight_decay()
        )
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.999), fused=CUDA)
        self.ema = [p.detach().clone() for p in self.parameters] if case["ema"] else None
        shape = (case["batch_size"], case["image_size"], case["image_size"], 3)
        self.image = torch.randint(0, 256, shape, dtype=torch.uint8, device=DEVICE)
        self.label = torch.randint(0, CLASSES, shape[:1], device=DEVICE)
        self.loss = make_loss(model, teacher, self.dtype)
        if case["compile"] != "none":
            self.loss = torch.compile(self.loss, mode=case["compile"])
        synchronize()
        start = time.perf_counter()
        loss = self._step().item()
        synchronize()
        end = time.perf_counter()
        # Parameters, two moments and the EMA.
        copies = 1 + 2 + (self.ema is not None)
        teachers = sum(p.numel() for p in teacher.parameters()) if teacher is not None else 0
        count = sum(p.numel() for p in self.parameters)
        self.state_bytes = 4 * (copies * count + teachers)
        self.ready = {
            "first_step_s": round(end - start, 2),
            "process_to_first_step_s": round(end - START, 2),
            "loss": loss,
            "device": torch.cuda.get_device_name() if CUDA else "cpu",
            "versions": common.versions(),
        }

    def _step(self) -> torch.Tensor:
        loss = self.loss(self.image, self.label)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1 - EMA_DECAY)
        return loss.detach()

    def run(self, steps: int) -> dict:
        """Seconds for `steps` steps with one synchronization at the end."""
        start = time.perf_counter()
        for _ in range(steps):
            self._step()
        synchronize()
        return {"seconds": time.perf_counter() - start}

    def memory(self) -> dict:
        """GiB: peak of torch's allocator; parameters, moments, EMA and teacher."""
        peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else None
        return {"peak_gib": peak, "program_gib": None, "state_gib": self.state_bytes / 2**30}


def calibrate(side: int, count: int) -> dict:
    """FLOP/s of bf16 products of random [side, side] matrices."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        a @ b
    synchronize()
    return {"flops": 2 * side**3 * count / (time.perf_counter() - start)}


def open_case(case: dict) -> tuple[dict, dict]:
    """See `workers.serve`."""
    opened = Case(case)
    return opened.ready, {"run": opened.run, "memory": opened.memory, "calibrate": calibrate}


if __name__ == "__main__":
    workers.serve(open_case)
