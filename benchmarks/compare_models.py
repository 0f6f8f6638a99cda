"""Every registered model against timm and transformers, with the same random weights.

    python benchmarks/compare_models.py [--reference-python=PYTHON] [PATTERN ...]

For each model, the reference writes random weights, the logits of all heads and the output of
every block in f32. This library loads the weights, compares, and converts them back to the same
format; the reference loads that file strictly and compares its logits with the first ones. Prints
one line per model and fails above --tolerance (maximum difference over the largest value).
--reference-python is an interpreter with torch, timm and transformers; default: this one.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from deit_jax import models, pretrained
from deit_jax.errors import ConfigError
from deit_jax.pretrained.convert import convert
from deit_jax.pretrained.formats import huggingface
from deit_jax.pretrained.formats.torch_file import read_torch

ROOT = pathlib.Path(__file__).resolve().parent.parent
SERVER = ROOT / "tests" / "reference" / "serve_models.py"
# 0.6 to 2.5 GB of weights each: only when named or with --all.
LARGE = ("deit3_large", "deit3_huge", "regnety_320")

sys.path.insert(0, str(SERVER.parent))
from random_weights import random_image


class Reference:
    """The process that runs torch."""

    def __init__(self, python: str):
        self.process = subprocess.Popen(
            [python, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def request(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{SERVER.name} exited; does its Python have torch, timm, transformers?"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "patterns",
        nargs="*",
        metavar="PATTERN",
        help="of model names; default: all but the largest",
    )
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--all", action="store_true", help="include the largest models")
    parser.add_argument("--json", type=pathlib.Path, help="JSON file for the results")
    args = parser.parse_args()
    jax.config.update("jax_default_matmul_precision", "highest")
    reference = Reference(args.reference_python)
    rows = []
    for name in _select(args.patterns, args.all):
        for kind in ("timm", "hf") if _has_hf(name) else ("timm",):
            rows.append(compare(reference, kind, name))
            print(_line(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    worst = max(max(row["logits"], row["blocks"], row["back"]) for row in rows)
    print(f"{len(rows)} comparisons, worst {worst:.1e}, tolerance {args.tolerance:.0e}")
    return 0 if worst <= args.tolerance and all(row["round_trips"] for row in rows) else 1


def _select(patterns: list[str], include_large: bool) -> list[str]:
    if patterns:
        return sorted({name for pattern in patterns for name in models.list_models(pattern)})
    return [n for n in models.list_models() if include_large or not n.startswith(LARGE)]


def _has_hf(name: str) -> bool:
    try:
        huggingface.model_config(models.create_model(name), None)
    except ConfigError:
        return False
    return True


def compare(reference: Reference, kind: str, name: str) -> dict:
    """One model in one format: largest relative differences, and whether round trips are exact."""
    start = time.monotonic()
    model = models.create_model(name)
    size = model.image_size[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        common = {"kind": kind, "model": name, "folder": str(folder), "size": size}
        reference.request(do="make", **common)
        source = folder / ("weights.pth" if kind == "timm" else "weights")
        loaded = pretrained.load_checkpoint(source)
        if loaded.model != name:
            raise ConfigError(f"{name} was read as {loaded.model}")
        differences = _differences(loaded, read_torch(folder / "answers.pth"), size)
        ours = folder / ("ours.safetensors" if kind == "timm" else "ours")
        convert(source, ours, to=kind)
        reloaded = pretrained.load_checkpoint(ours)
        same = jax.tree.map(np.array_equal, loaded.variables, reloaded.variables)
        back = reference.request(do="check", path=str(ours), **common)
    heads = {key: value for key, value in differences.items() if "logits" in key}
    blocks = {key: value for key, value in differences.items() if "logits" not in key}
    return {
        "model": name,
        "names": kind,
        "heads": len(heads),
        "logits": max(heads.values()),
        "blocks_compared": len(blocks),
        "blocks": max(blocks.values()),
        "folded": _folded(loaded, size),
        "round_trips": jax.tree.all(same),
        "back": back["worst"],
        "seconds": round(time.monotonic() - start, 1),
    }


def _differences(loaded, answers: dict[str, np.ndarray], size: int) -> dict[str, float]:
    model = loaded.create_model()
    forward = jax.jit(lambda v, x: models.apply(model, v, x, capture=True))
    output, features = forward(loaded.variables, random_image(size, size))
    results = jax.device_get(
        features | {k: v for k, v in output._asdict().items() if v is not None}
    )
    if not set(answers) <= set(results):
        raise ConfigError(f"our outputs lack {sorted(set(answers) - set(results))}")
    return {key: _relative(results[key], value) for key, value in answers.items()}


def _folded(loaded, size: int) -> float | None:
    """Change of the logits when BatchNorm is folded; None for models without BatchNorm."""
    if "batch_stats" not in loaded.variables:
        return None
    image = random_image(size, size)
    logits = []
    plain = loaded.create_model(), loaded.variables
    for model, variables in (plain, plain[0].fold_batch_norm(plain[1])):
        run = jax.jit(lambda v, x, model=model: models.apply(model, v, x).logits)
        logits.append(np.asarray(run(variables, image)))
    return _relative(logits[1], logits[0])


def _relative(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def _line(row: dict) -> str:
    folded = "" if row["folded"] is None else f", folded {row['folded']:.1e}"
    return (
        f"{row['model']:34} {row['names']:4} logits {row['logits']:.1e} ({row['heads']} heads), "
        f"{row['blocks_compared']} blocks {row['blocks']:.1e}{folded}, "
        f"back {row['back']:.1e}, round trip {'exact' if row['round_trips'] else 'WRONG'}, "
        f"{row['seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main())
