"""The `deit-jax explain MODEL` half of explain: size, cost and published accuracy."""

import argparse


def run(args: argparse.Namespace) -> int:
    from deit_jax import models

    for name in args.model or models.list_models():
        print(describe(name))
    return 0


def describe(name: str) -> str:
    """Size, cost and published accuracies of the registered model `name`.

    Raises:
      ConfigError: it is not registered.
    """
    from deit_jax import models
    from deit_jax.pretrained import hub

    model = models.create_model(name)
    parameters, macs = models.count(model)
    size = "x".join(map(str, model.image_size))
    lines = [
        f"{name}: {parameters:,} parameters, {macs / 1e9:.3f} G multiply-accumulates at {size}"
    ]
    for tag, entry in hub.checkpoints_of(name).items():
        digest = f"SHA-256 {entry.sha256}..." if entry.sha256 else "no published digest"
        lines.append(
            f"  {tag}: top-1 {entry.top1} % on ImageNet (crop ratio {entry.crop_ratio}), "
            f"{entry.url} ({digest})"
        )
    return "\n".join(lines if len(lines) > 1 else [*lines, "  no checkpoint of DeiT's authors"])
