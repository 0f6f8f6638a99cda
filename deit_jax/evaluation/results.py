"""Results as text: of one checkpoint by set, weights and head; of several runs side by side."""

import pathlib
from collections.abc import Mapping
from typing import Any

from deit_jax.errors import ConfigError
from deit_jax.evaluation.heads import HEADS
from deit_jax.tracking.writers import FILE_NAME, read_jsonl

_WEIGHTS = {"eval": "raw", "eval_ema": "EMA"}


def accuracy_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Results by set, kind of weights and head, as text: shares in percent."""
    lines = [
        f"{'set':<5} {'weights':<8} {'head':<18} {'top-1 %':>8} {'top-5 %':>8} {'loss':>8} "
        f"{'images':>8}"
    ]
    for name, by_weights in results.items():
        for weights, scores in by_weights.items():
            for head in HEADS:
                if head not in scores:
                    continue
                cells = [
                    f"{100 * scores[head][key]:.3f}" if key in scores[head] else "-"
                    for key in ("top1", "top5")
                ]
                loss = scores[head].get("loss")
                cells.append("-" if loss is None else f"{loss:.4f}")
                right = " ".join(f"{cell:>8}" for cell in [*cells, f"{scores['count']:,}"])
                lines.append(f"{name:<5} {weights:<8} {HEADS[head].title:<18} {right}")
    return "\n".join(lines)


def last_evaluation(workdir: pathlib.Path) -> dict[str, float]:
    """The newest evaluation in `metrics.jsonl`, with its `step`.

    Raises:
      ConfigError: the run is not there or has not been evaluated yet.
    """
    file = workdir / FILE_NAME
    if not file.is_file():
        raise ConfigError(f"{workdir} is not the workdir of a run ({FILE_NAME} is missing)")
    last = None
    for record in read_jsonl(file):
        if any(key.startswith("eval/") for key in record):
            last = record
    if last is None:
        raise ConfigError(f"the run in {workdir} has not been evaluated yet")
    return last


def comparison_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Top-1 in percent: a column for each run, a row for each head and kind of weights."""
    rows = []
    for head, (title, _) in HEADS.items():
        for prefix, weights in _WEIGHTS.items():
            values = [r.get(f"{prefix}/{head}/top1") for r in results.values()]
            if any(value is not None for value in values):
                cells = ["" if v is None else f"{100 * v:.2f}" for v in values]
                rows.append([title, weights, *cells])
    count = {int(r["eval/count"]) for r in results.values() if "eval/count" in r}
    header = [f"top-1, % of {', '.join(map(str, sorted(count)))} images", "weights", *results]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
