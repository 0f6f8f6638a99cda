"""Measuring many programs side by side: what fits, warm-up, interleaved rounds."""

import dataclasses
import gc
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax

from deit_jax.errors import ConfigError
from deit_jax.recipe import hardware
from deit_jax.train.speed import programs
from deit_jax.train.speed.rounds import interleave, rounded, summary

# Of a round, so many calls at most are also timed one by one.
_LATENCIES = 20


class Round(NamedTuple):
    """Seconds a call of calls that were started one after the other, and of single ones."""

    seconds: float
    latencies: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How long everything is measured.

    Attributes:
      rounds: of each case, those of all cases in turn.
      seconds: about how long a round of a case takes, and its warm-up.
    """

    rounds: int = 5
    seconds: float = 1.0

    def calls(self, seconds: float) -> int:
        """Calls of a round of something that takes `seconds` a call."""
        return max(1, min(1000, round(self.seconds / max(seconds, 1e-9))))


class Case:
    """A program that is measured; `facts` and `result` are JSON values."""

    def __init__(self, program: programs.Program, protocol: Protocol):
        self.program, self._calls = program, 1
        timed_calls(program.call, 2)
        self._calls = protocol.calls(timed_calls(program.call, 1).seconds)
        timed_calls(program.call, self._calls)

    @property
    def name(self) -> str:
        """For people."""
        p = self.program
        return f"{p.subject.label} {p.kind} at {p.batch_size}"

    @property
    def facts(self) -> dict[str, Any]:
        """What it is, what was compiled, and the memory of one device."""
        p, model = self.program, self.program.experiment.recipe.model
        devices = p.subject.mesh.devices
        return {
            "model": p.subject.label,
            "name": p.subject.name,
            "registered": p.subject.is_registered(model),
            "by": "deit_jax",
            "kind": p.kind,
            "batch_size": p.batch_size,
            "image_size": list(model.image_size),
            "dtype": str(model.dtype),
            "attention": model.attention_on() if hasattr(model, "attention_on") else None,
            "devices": int(devices.size),
            "compile_s": round(p.compile_s, 2),
            "memory_gib": rounded(p.memory.nbytes / programs.GIB),
            "memory_by": p.memory.source,
            "gflop_per_image": rounded(p.flops() / p.batch_size / 1e9),
        }

    def round(self) -> Round:
        """One round of calls."""
        return timed_calls(self.program.call, self._calls)

    def result(self, found: Sequence[Round]) -> dict[str, Any]:
        """`facts`, and what the rounds say."""
        p = self.program
        result = self.facts | summarize(found, p.batch_size)
        first = p.subject.mesh.devices.flat[0]
        peak = hardware.peak_flops(first, result["dtype"]) if result["dtype"] != "float32" else None
        if peak:
            achieved = p.flops() / p.batch_size * result["images_per_s"]["median"]
            result["share_of_peak"] = round(achieved / (peak * p.subject.mesh.size), 4)
        return result


def timed_calls(call: Callable[[], Any], count: int) -> Round:
    """Times `count` calls, waiting once for the last, then up to 20 that are each waited for."""
    start = time.perf_counter()
    for _ in range(count):
        out = call()
    jax.block_until_ready(out)  # pyright: ignore[reportPossiblyUnboundVariable]
    seconds = (time.perf_counter() - start) / count
    latencies = []
    for _ in range(min(count, _LATENCIES)):
        start = time.perf_counter()
        jax.block_until_ready(call())
        latencies.append(time.perf_counter() - start)
    return Round(seconds, latencies)


def summarize(found: Sequence[Round], batch_size: int) -> dict[str, Any]:
    """Throughput over the rounds, and latency over all single calls."""
    latencies = [1e3 * seconds for one in found for seconds in one.latencies]
    of_calls = summary(latencies)
    del of_calls["rounds"]
    return {
        "images_per_s": summary([batch_size / one.seconds for one in found]),
        "latency_ms": of_calls | {"calls": len(latencies)},
    }


def open_cases(
    subjects: Iterable[programs.Subject],
    kinds: Sequence[str],
    batch_sizes: Callable[[programs.Subject, str], Sequence[int]],
    protocol: Protocol,
    print_line: Callable[[str], None],
) -> list[Case]:
    """Compiles and warms up everything that fits; a line for each, and for what does not.

    Larger batches than one that does not fit are not tried.
    """
    cases: list[Case] = []
    for subject in subjects:
        for kind in kinds:
            for batch_size in sorted(set(batch_sizes(subject, kind))):
                what = f"{subject.label} {kind} at {batch_size}"
                try:
                    program = programs.PROGRAMS[kind](subject, batch_size)
                    cases.append(Case(program, protocol))
                except ConfigError as error:
                    print_line(f"{what}: left out: {str(error).replace(chr(10), '; ')}")
                    continue
                except Exception as error:
                    if not programs.is_out_of_memory(error):
                        raise
                    said = str(error).partition("\n")[0][:300]
                    print_line(f"{what}: out of memory, larger batches are left out: {said}")
                    # What the error's frames hold.
                    gc.collect()
                    break
                print_line(f"{what}: compiled in {program.compile_s:.1f} s")
    return cases


def measure(
    cases: Sequence[Any], protocol: Protocol, print_line: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The results of all cases that stay measurable, in their order; rounds are interleaved."""
    failed: set[str] = set()

    def round_of(case: Any) -> Callable[[], Round | None]:
        def run() -> Round | None:
            if case.name in failed:
                return None
            try:
                return case.round()
            except Exception as error:
                if not programs.is_out_of_memory(error):
                    raise
                # It fitted alone, and not beside the others.
                failed.add(case.name)
                print_line(f"{case.name}: out of memory beside the others: measure it alone")
                return None

        return run

    found = interleave({case.name: round_of(case) for case in cases}, protocol.rounds)
    return [
        case.result([one for one in found[case.name] if one])
        for case in cases
        if case.name not in failed
    ]
