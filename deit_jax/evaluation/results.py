"""Results as text: of one checkpoint by set, weights and head; of several runs side by side."""

from collections.abc import Mapping
from typing import Any

from deit_jax import storage
from deit_jax.errors import ConfigError
from deit_jax.evaluation.heads import HEADS
from deit_jax.tracking import text
from deit_jax.tracking.jsonl import FILE_NAME, read_jsonl

_WEIGHTS = {"eval": "raw", "eval_ema": "EMA"}


def accuracy_table(name: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Results on the set `name` by kind of weights and head, as text: shares in percent."""
    rows = [["set", "weights", "head", "top-1 %", "top-5 %", "loss", "images"]]
    for weights, scores in results.items():
        for head, (title, _) in HEADS.items():
            if head in scores:
                found = scores[head]
                shares = [f"{100 * found[k]:.3f}" if k in found else "-" for k in ("top1", "top5")]
                loss = f"{found['loss']:.4f}" if "loss" in found else "-"
                rows.append([name, weights, title, *shares, loss, f"{scores['count']:,}"])
    return text.table(rows, left=3)


def last_evaluation(workdir: storage.Path) -> dict[str, float]:
    """The newest evaluation in `metrics.jsonl`, with its `step`.

    Raises:
      ConfigError: the run is not there or has not been evaluated yet.
    """
    file = workdir / FILE_NAME
    if not file.is_file():
        raise ConfigError(f"{workdir} is not the workdir of a run ({FILE_NAME} is missing)")
    found = [r for r in read_jsonl(file) if any(key.startswith("eval/") for key in r)]
    if not found:
        raise ConfigError(f"the run in {workdir} has not been evaluated yet")
    return found[-1]


def comparison_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Top-1 in percent: a column for each run, a row for each head and kind of weights."""
    count = {int(r["eval/count"]) for r in results.values() if "eval/count" in r}
    title = f"top-1, % of {', '.join(map(str, sorted(count)))} images"
    rows = [[title, "weights", *results]]
    for head, (title, _) in HEADS.items():
        for prefix, weights in _WEIGHTS.items():
            values = [r.get(f"{prefix}/{head}/top1") for r in results.values()]
            if any(value is not None for value in values):
                cells = ["" if v is None else f"{100 * v:.2f}" for v in values]
                rows.append([title, weights, *cells])
    return text.table(rows, left=2)
