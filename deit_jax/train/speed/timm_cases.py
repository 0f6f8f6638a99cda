"""timm's models as cases that are measured in turn with this library's, in a process beside it."""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

from deit_jax.errors import ConfigError
from deit_jax.train.speed import timm_worker
from deit_jax.train.speed.measure import Case, Protocol, Round, summarize
from deit_jax.train.speed.programs import GIB
from deit_jax.train.speed.rounds import rounded
from deit_jax.train.speed.workers import Worker, WorkerFailed


def is_installed() -> bool:
    """Whether this Python has torch and timm; neither is imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "timm"))


def start(python: str | None, mode: str, platform: str) -> Worker:
    """A process with timm on the same kind of device.

    Args:
      python: an interpreter that has torch and timm; None for this one.
      mode: of torch.compile, or `none`.
      platform: of jax's devices: gpu or cpu.

    Raises:
      ConfigError: it does not start, or computes on something else.
    """
    command = [python or sys.executable, timm_worker.__file__]
    # Beside the worker's file are modules that are not meant for it.
    environment = {"PYTHONSAFEPATH": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        worker = Worker(command, {"compile": mode}, environment)
    except (OSError, WorkerFailed) as error:
        raise ConfigError(f"timm cannot be measured with {command[0]}: {error}") from None
    if worker.ready["platform"] != platform:
        worker.close()
        raise ConfigError(
            f"timm cannot be measured beside jax: torch computes on {worker.ready['platform']}, "
            f"jax on {platform}"
        )
    return worker


class TimmCase:
    """A model of timm at one batch size."""

    def __init__(self, worker: Worker, ours: Case, protocol: Protocol, mode: str):
        p = ours.program
        model = p.experiment.recipe.model
        self._worker, self._ours, self._mode = worker, ours, mode
        self._batch_size, self._key = p.batch_size, f"{p.subject.label}:{p.batch_size}"
        sizes = {"image_size": list(model.image_size), "dtype": str(model.dtype)}
        what = {"key": self._key, "name": p.subject.name, "batch_size": p.batch_size}
        self._opened = worker.request(do="open", **what, **sizes)
        if "out_of_memory" in self._opened:
            raise MemoryError(self._opened["out_of_memory"])
        self._calls = protocol.calls(self._round(1).seconds)
        self._round(self._calls)

    @property
    def name(self) -> str:
        """For people."""
        return f"timm's {self._ours.name}"

    def _round(self, calls: int) -> Round:
        answer = self._worker.request(do="round", key=self._key, calls=calls)
        return Round(answer["seconds"], answer["latencies"])

    def round(self) -> Round:
        """One round of calls."""
        return self._round(self._calls)

    def result(self, found: Sequence[Round]) -> dict[str, Any]:
        """As of `Case`."""
        memory = self._opened["memory"]
        same = (
            "model",
            "name",
            "registered",
            "kind",
            "batch_size",
            "image_size",
            "dtype",
            "gflop_per_image",
        )
        return {
            **{key: self._ours.facts[key] for key in same},
            "by": "timm",
            "torch_compile": self._mode,
            "versions": self._worker.ready["versions"],
            "compile_s": round(self._opened["compile_s"], 2),
            "memory_gib": memory and rounded(memory / GIB),
            "memory_by": "torch's allocator" if memory else None,
            **summarize(found, self._batch_size),
        }


def open_cases(
    worker: Worker,
    ours: Sequence[Case],
    protocol: Protocol,
    mode: str,
    print_line: Callable[[str], None],
) -> list[TimmCase]:
    """timm's of each inference that is measured here; a line for what it cannot do."""
    cases = []
    for case in ours:
        program = case.program
        if program.kind != "inference" or program.subject.mesh.size > 1:
            continue
        if not case.facts["registered"]:
            print_line(f"timm has no model like that of {program.subject.label}")
            continue
        try:
            cases.append(TimmCase(worker, case, protocol, mode))
        except MemoryError as error:
            print_line(f"timm's {case.name}: out of memory: {error}")
        except WorkerFailed as error:
            said = str(error).partition("\n")[0][:300]
            print_line(f"timm's {case.name}: {said}; no more of timm")
            break
    return cases
