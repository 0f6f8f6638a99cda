"""Answers of the reference implementations for `benchmarks/compare_models.py`.

Reads one JSON request a line from standard input and writes one JSON line back:

    {"do": "make", "kind": "timm" | "hf", "model": NAME, "folder": DIR, "size": 224}
        DIR gets the weights (weights.pth, or transformers' own files) and answers.pth
    {"do": "check", "kind": ..., "model": NAME, "path": FILE_OR_DIR, "folder": DIR, "size": 224}
        loads a file of ours, strictly, and returns how far its logits are from answers.pth
"""

import json
import pathlib
import sys

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import torch_models  # isort: skip  (makes torchvision importable)
import timm
import transformers
from random_weights import random_image


def make(kind: str, model: str, folder: str, size: int) -> dict:
    folder = pathlib.Path(folder)
    image = random_image(size, size)
    if kind == "timm":
        reference = torch_models.timm_model(model)
        torch.save({"model": reference.state_dict()}, folder / "weights.pth")
    else:
        architecture, config = _hf_arguments(model, size)
        reference = torch_models.hf_model(architecture, **config)
        reference.save_pretrained(folder / "weights")
    results = torch_models.run(reference, image)
    torch.save(
        {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in results.items()},
        folder / "answers.pth",
    )
    return {"arrays": len(results)}


def _hf_arguments(model: str, size: int) -> tuple[str, dict]:
    """(class, configuration) of transformers for one of our names."""
    reference = timm.create_model(model)
    if model.startswith("regnety"):
        stages = [getattr(reference, f"s{n}") for n in range(1, 5)]
        convs = [next(stage.children()).conv2.conv for stage in stages]
        return "RegNetForImageClassification", {
            "embedding_size": 32,
            "hidden_sizes": [conv.out_channels for conv in convs],
            "depths": [len(list(stage.children())) for stage in stages],
            "groups_width": convs[-1].weight.shape[1],
            "layer_type": "y",
            "num_labels": 1000,
        }
    heads = reference.blocks[0].attn.num_heads
    config = torch_models.hf_config(reference.embed_dim, len(reference.blocks), heads)
    config |= {"image_size": size, "num_labels": 1000, "attn_implementation": "eager"}
    config |= {"patch_size": reference.patch_embed.patch_size[0]}
    return (
        "DeiTForImageClassificationWithTeacher"
        if "distilled" in model
        else "ViTForImageClassification"
    ), config


def check(kind: str, model: str, path: str, folder: str, size: int) -> dict:
    answers = torch.load(pathlib.Path(folder) / "answers.pth")
    if kind == "timm":
        from safetensors.torch import load_file

        reference = timm.create_model(model).eval()
        reference.load_state_dict(load_file(path), strict=True)
        processor = ""
    else:
        architecture, _ = _hf_arguments(model, size)
        cls = getattr(transformers, architecture)
        reference, notes = cls.from_pretrained(
            path, output_loading_info=True, attn_implementation="eager"
        )
        reference.eval()
        wrong = {key: list(value) for key, value in notes.items() if value}
        if wrong:
            raise ValueError(f"from_pretrained found {wrong}")
        processor = type(transformers.AutoImageProcessor.from_pretrained(path)).__name__
    results = torch_models.run(reference, random_image(size, size))
    worst = 0.0
    for key in ("logits", "dist_logits"):
        if key in results:
            expected = answers[key].numpy()
            worst = max(
                worst, float(np.abs(results[key] - expected).max() / np.abs(expected).max())
            )
    return {"worst": worst, "processor": processor}


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for line in sys.stdin:
        request = json.loads(line)
        action = {"make": make, "check": check}[request.pop("do")]
        try:
            answer = action(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
