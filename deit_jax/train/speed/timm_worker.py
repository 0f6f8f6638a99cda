"""timm's models, timed in a process of its own: run as a file by a Python with torch and timm.

Nothing here imports this library or jax, which that Python need not have. Inference alone: timm's
training augments on the host, so a step of it is not what a step here is.
"""

import os
import runpy
import time
from collections.abc import Callable
from typing import Any

_LATENCIES = 20
# torch takes back what a library defined when that is gone.
_libraries: list[Any] = []


def import_torch_and_timm() -> tuple[Any, Any]:
    """The two modules, also where torchvision was built for another torch."""
    import torch  # pyright: ignore[reportMissingImports]

    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        pass
    except (ImportError, RuntimeError):
        # It lacks these two, which nothing here calls.
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
    import timm  # pyright: ignore[reportMissingImports]

    return torch, timm


def _time(call: Callable[[], Any], synchronize: Callable[[], None], calls: int) -> dict:
    """As `measure.timed_calls`."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize()
    seconds = (time.perf_counter() - start) / calls
    latencies = []
    for _ in range(min(calls, _LATENCIES)):
        start = time.perf_counter()
        call()
        synchronize()
        latencies.append(time.perf_counter() - start)
    return {"seconds": seconds, "latencies": latencies}


def open_worker(case: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """See `workers.serve`; `case` is {"compile": mode of torch.compile or "none"}."""
    torch, timm = import_torch_and_timm()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    synchronize = torch.cuda.synchronize if cuda else lambda: None
    models: dict[str, Any] = {}
    opened: dict[str, tuple[Any, Any]] = {}

    def model_of(name: str, image_size: list[int], dtype: Any) -> Any:
        if name not in models:
            sizes = {"img_size": tuple(image_size)} if name.startswith("deit") else {}
            model = timm.create_model(name, pretrained=False, **sizes).eval().to(device, dtype)
            if case["compile"] != "none":
                model = torch.compile(model, mode=case["compile"], dynamic=False)
            models[name] = model
        return models[name]

    def open_one(key: str, name: str, batch_size: int, image_size: list[int], dtype: str) -> dict:
        kind = getattr(torch, dtype)
        shape = (batch_size, 3, *image_size)
        try:
            model = model_of(name, image_size, kind)
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            opened[key] = model, torch.randn(shape, device=device, dtype=kind)
            start = time.perf_counter()
            timed(key, 1)
            first = time.perf_counter() - start
            timed(key, 1)
        except RuntimeError as error:
            opened.pop(key, None)
            if "out of memory" in str(error).lower():
                return {"out_of_memory": str(error).partition("\n")[0]}
            raise
        peak = torch.cuda.max_memory_allocated() if cuda else None
        return {"memory": peak, "compile_s": first}

    def timed(key: str, calls: int) -> dict:
        model, image = opened[key]
        with torch.inference_mode():
            return _time(lambda: model(image), synchronize, calls)

    ready = {
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "platform": "gpu" if cuda else "cpu",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }
    return ready, {"open": open_one, "round": timed}


if __name__ == "__main__":
    beside = os.path.join(os.path.dirname(__file__), "workers.py")
    runpy.run_path(beside)["serve"](open_worker)
